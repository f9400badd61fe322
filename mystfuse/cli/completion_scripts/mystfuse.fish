# mystfuse's completion for fish. `mystfuse completion fish` prints it.

function __mystfuse_complete
    set -l words (commandline -opc)
    # Behind sudo, for example.
    while set -q words[1]; and not string match -q -r '(^|/)mystfuse$' -- $words[1]
        set -e words[1]
    end
    set -q words[1]; or return
    # As the user has typed it.
    set words[1] (string replace -r '^~/' "$HOME/" -- $words[1])
    for line in (env _MYSTFUSE_COMPLETE=fish_complete $words (commandline -ct) 2>/dev/null)
        set -l fields (string split \t -- $line)
        switch $fields[1]
            case plain part
                if test -n "$fields[3]"
                    printf '%s\t%s\n' $fields[2] $fields[3]
                else
                    printf '%s\n' $fields[2]
                end
            case file dir pem
                # What is in front of the file's name, in --sign PUBLIC.pem:PRIVATE.pem for example.
                set -l front (string sub --length $fields[2] -- (commandline -ct))
                set -l files
                switch $fields[1]
                    case file
                        set files (__fish_complete_path $fields[3])
                    case dir
                        set files (__fish_complete_directories $fields[3] '')
                    case pem
                        set files (__fish_complete_path $fields[3] | string match -r '^(?:.*\.pem|.*/)(?:\t.*)?$')
                        test -n "$files"; or set files (__fish_complete_path $fields[3])
                end
                for file in $files
                    printf '%s\n' "$front$file"
                end
        end
    end
end

complete --command mystfuse --no-files --arguments '(__mystfuse_complete)'
