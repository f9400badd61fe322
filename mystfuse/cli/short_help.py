"""What each command is for, in a few words: for shells that show it while somebody types.

Each command says so itself; the tests compare. Importing all of them would take several times too long for that.
"""

SHORT_HELP = {
    "mount": "Mount an image, every block verified.",
    "umount": "Unmount, and wait until the daemon is gone.",
    "status": "Show what is mounted, why it is trusted, and counts.",
    "commit": "Make a new image of a mount's present state.",
    "exec": "Run a program from an image, with the image as its root.",
    "package": "Make a signed package that runs a program from an image.",
    "run": "Run a package.",
    "mkext2": "Make an image from a directory, tar archives, or an OCI image.",
    "sign": "Sign an image in place, or make it unsigned.",
    "info": "Say what a file is, who signed it, and what opening it takes.",
    "fssig": "Print the signature block of an image.",
    "verify": "Check every block of an image.",
    "ls": "List what is in an image.",
    "cat": "Write files of an image to stdout.",
    "extract": "Copy a file or directory out of an image.",
    "tar": "Write a tree of an image to stdout as a tar archive.",
    "oci": "Make an OCI image of an image or a mount.",
    "push": "Send an image to a registry, or to S3.",
    "cache": "Look at, clear and fill a cache of images elsewhere.",
    "diff": "Show what differs: of images, mounts, directories, archives.",
    "trace": "Write down what of its image a mount has read, for --prefetch.",
    "keys": "Look at keys for signing.",
    "completion": "Have bash, zsh or fish complete command lines.",
    "help": "Show the help of a command.",
}
