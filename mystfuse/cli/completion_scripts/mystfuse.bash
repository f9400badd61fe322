# mystfuse's completion for bash. `mystfuse completion bash` prints it.

_mystfuse() {
    local command=$1 type value files=
    # As the user has typed it.
    [[ $command != '~/'* ]] || command=$HOME/${command#'~/'}
    COMPREPLY=()
    while IFS=$'\t' read -r type value; do
        case $type in
            plain) COMPREPLY+=("$value") ;;
            part) COMPREPLY+=("$value"); compopt -o nospace ;;
            *) files=$type ;;
        esac
    done < <(_MYSTFUSE_COMPLETE=bash_complete _MYSTFUSE_BREAKS=$COMP_WORDBREAKS \
        "$command" "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    case $files in
        file) compopt -o bashdefault -o default ;;
        dir) compopt -o dirnames ;;
        pem)
            mapfile -t COMPREPLY < <(compgen -f -X '!*.pem' -- "$2")
            if [ ${#COMPREPLY[@]} = 0 ]; then
                compopt -o bashdefault -o default
            else
                mapfile -t -O ${#COMPREPLY[@]} COMPREPLY < <(compgen -d -- "$2")
                compopt -o filenames
            fi
            ;;
    esac
}

complete -F _mystfuse mystfuse
