"""What differs between two trees: of images, mounts, directories, tar archives."""
