#compdef mystfuse
# mystfuse's completion for zsh. `mystfuse completion zsh` prints it.

_mystfuse() {
    local line found=1
    local -a fields names explained parts
    # As the user has typed it.
    local command=${~${(Q)words[1]}}
    (( $+commands[$command] )) || [[ -x $command ]] || return 1
    for line in "${(@f)$(_MYSTFUSE_COMPLETE=zsh_complete $command "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)}"; do
        fields=("${(@ps:\t:)line}")
        case $fields[1] in
            plain)
                if [[ -n $fields[3] ]]; then
                    explained+=("${fields[2]//:/\\:}:$fields[3]")
                else
                    names+=("$fields[2]")
                fi
                ;;
            part) parts+=("$fields[2]") ;;
            file | dir | pem)
                # What is in front of the file's name, in --sign PUBLIC.pem:PRIVATE.pem for example.
                (( fields[2] == 0 )) || compset -p $fields[2]
                case $fields[1] in
                    file) _files && found=0 ;;
                    dir) _files -/ && found=0 ;;
                    pem) _files -g '*.pem' && found=0 ;;
                esac
                ;;
        esac
    done
    (( ! $#explained )) || { _describe 'mystfuse' explained && found=0; }
    (( ! $#names )) || { compadd -a names && found=0; }
    (( ! $#parts )) || { compadd -S '' -a parts && found=0; }
    return found
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    # From a directory in fpath, at the first completion.
    _mystfuse "$@"
else
    compdef _mystfuse mystfuse
fi
