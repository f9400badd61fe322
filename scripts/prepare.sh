# Sourced by the other scripts: installs missing tools, once, and puts the virtual environment first in PATH.
#
#   prepare "Debian packages" run|test|fuzz
#
# Debian packages are installed when root, else asked for; Python packages, those that scripts/requirements/NAME.txt has, go
# into .venv beside the code.

set -euo pipefail

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$project/.venv

say() { printf '== %s\n' "$*" >&2; }
fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }

# run_alone COMMAND...: as root in namespaces of its own, which end with us. So nothing is left, and a namespace that another
# process makes meanwhile does not copy (and keep) its mounts. Does not return.
run_alone() {
    # It unmounts its copies of our other mounts, whose daemons would wait for them.
    local alone=(setpriv --pdeathsig KILL unshare --mount --propagation private --pid --fork --kill-child --mount-proc
        sh -c 'umount -a -l -i -t fuse.mystfuse 2>/dev/null; exec "$@"' sh) status=0
    if [ "$(id -u)" != 0 ] || ! "${alone[@]}" true 2>/dev/null; then
        exec "$@"
    fi
    "${alone[@]}" "$@" &
    # unshare passes no signals on.
    trap 'pkill -TERM -P "$!"' INT TERM HUP
    wait "$!" || status=$?
    while kill -0 "$!" 2>/dev/null; do
        status=0
        wait "$!" || status=$?
    done
    exit "$status"
}

# remove_tree DIRECTORY: with everything in it, but never through a mount, which may show another program's files.
remove_tree() {
    local top mounts
    top=$(realpath -- "$1") || return 0
    # Without looking at the mounts themselves: one whose daemon hangs would hang us.
    mounts=$(cut -d ' ' -f 5 /proc/self/mountinfo | while read -r path; do
        path=$(printf %b "${path//\\/\\0}")
        case $path/ in "$top"/*) printf '%s ' "$path" ;; esac
    done)
    [ -z "$mounts" ] || { say "not removed, since this is mounted there: $mounts"; return 1; }
    rm -rf --one-file-system -- "$top"
}

missing_packages() {
    local package
    for package in $1; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || printf '%s ' "$package"
    done
}

# lists_are_new: whether apt-get update has run within the hour, as it has for who has just installed git. The lists themselves
# have the dates that the server gave them.
lists_are_new() {
    local lists=/var/lib/apt/lists
    [ -n "$(find $lists/partial -maxdepth 0 -mmin -60 2>/dev/null)" ] &&
        [ -n "$(find $lists -maxdepth 1 -name '*_Packages*' -print -quit)" ]
}

install_packages() {
    command -v dpkg-query >/dev/null || { say "not a Debian system: taking $1 for installed"; return; }
    local missing
    missing=$(missing_packages "$1")
    [ -n "$missing" ] || return 0
    [ "$(id -u)" = 0 ] || fail "these packages are missing, install them first: sudo apt-get install $missing"
    say "installing $missing"
    lists_are_new || apt-get -qq update
    # shellcheck disable=SC2086  # a list of words
    DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install $missing >/dev/null </dev/null
}

find_python() {
    # The system's own first: other users can run it, but not a Python in a home directory.
    local candidate
    for candidate in /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "Python 3.11 or later with venv is needed"
}

# install_locked VENV NAME SOURCE [-e]: mystfuse from SOURCE, with the very files that scripts/requirements/NAME.txt has the
# digests of. So has build.txt: pip does not check what it fetches for an isolated build.
install_locked() {
    local pip=("$1/bin/pip" -q --disable-pip-version-check) locks=$project/scripts/requirements wheels result=0
    local ours=("${pip[@]}" install --no-compile --no-deps --no-build-isolation "${@:4}" "$3")
    wheels=$(mktemp -d)
    {
        "${pip[@]}" install --no-compile --require-hashes --only-binary :all: -r "$locks/build.txt" && {
            # pyfuse3 has no wheel. While it compiles, so does the C code of a checkout.
            "${pip[@]}" wheel --require-hashes --no-build-isolation -r "$locks/$2.txt" -w "$wheels" &
            if [ $# -gt 3 ]; then "${ours[@]}"; fi && wait "$!" && install_wheels "$1" "$wheels" &&
                # A package has completions, which click writes while it is built.
                if [ $# = 3 ]; then "${ours[@]}"; fi
        }
    } 2>&1 | { grep -v '^WARNING' || true; } >&2 || result=$?
    rm -rf "$wheels"
    return "$result"
}

# install_wheels VENV DIRECTORY: all that are there. By name and version: of a path, pip would note that it came from there.
install_wheels() {
    local file name version wanted=()
    for file in "$2"/*.whl; do
        IFS=- read -r name version _ <<< "${file##*/}"
        wanted+=("$name==$version")
    done
    "$1/bin/pip" -q --disable-pip-version-check install --no-compile --no-index --no-deps --find-links "$2" "${wanted[@]}"
}

# install_with_wheels VENV NAME DIRECTORY: what scripts/requirements/NAME.txt lists, but for the packages of which DIRECTORY has
# wheels. It installs these, too, and compiles nothing.
install_with_wheels() {
    local file names='' listed
    for file in "$3"/*.whl; do
        file=${file##*/}
        names+="|${file%%-*}"
    done
    listed=$(mktemp)
    # A requirement begins in the first column; its digests and comments are indented.
    awk -v names="^(${names#|})==" '/^[^ #]/ { left_out = $0 ~ names } !left_out' "$project/scripts/requirements/$2.txt" > "$listed"
    "$1/bin/pip" -q --disable-pip-version-check install --no-compile --require-hashes --only-binary :all: -r "$listed" 2>&1 |
        { grep -v '^WARNING' || true; } >&2
    rm "$listed"
    install_wheels "$1" "$3"
}

# compile_python VENV: makes bytecode of what is installed there, on all processors (pip takes one), but not of what only
# building needs, which is most of it.
compile_python() {
    "$1/bin/python3" -m compileall -q -j 0 \
        -x '/(Cython|pyximport|setuptools|setuptools_scm|vcs_versioning|_distutils_hack|pkg_resources|pip)/' \
        "$1"/lib/python3*/site-packages || true
}

# isolate_commands VENV [PLACE]: the commands that pip has put there start its Python at once, isolated, rather than by sh.
# PLACE: where the environment will be.
isolate_commands() {
    local line="#!${2:-$1}/bin/python3 -I"
    # The longest first line of a script that the kernel accepts.
    [[ ${#line} -lt 127 && $1 != *[[:space:]\|\&\\]* ]] || return 0
    sed -i "1s|.*|$line|" "$1/bin/mystfuse" "$1/bin/mount.mystfuse"
}

make_venv() {
    local stamp=$venv/.installed-$1 python newer
    newer=$(find "$project/pyproject.toml" "$project/setup.py" "$project/scripts/requirements" \
        "$project"/mystfuse/kernels/native/*.[ch] "$project"/mystfuse/fastpath/*.[ch] "$project/mystfuse/kernels/native/build.py" -newer "$stamp" 2>/dev/null || echo all)
    [ -n "$newer" ] || [ ! -x "$venv/bin/mystfuse" ] || return 0
    python=$(find_python)
    say "installing mystfuse and what scripts/requirements/$1.txt lists into $venv"
    "$venv/bin/python" -c '' 2>/dev/null || "$python" -m venv --clear "$venv"
    install_locked "$venv" "$1" "$project" -e
    [ -x "$venv/bin/mystfuse" ] || fail "pip could not install mystfuse"
    isolate_commands "$venv"
    compile_python "$venv"
    # pip does not for a checkout, and an environment may forbid Python to: each start would compile everything.
    "$venv/bin/python" -m compileall -q "$project/mystfuse" || true
    touch "$stamp"
}

# need_fuse: for scripts that are of no use without a mount.
need_fuse() { [ -e /dev/fuse ] || fail "/dev/fuse is missing: this kernel or container has no FUSE (try: modprobe fuse)"; }

prepare() {
    install_packages "ca-certificates fuse3 libfuse3-dev libssl-dev pkg-config gcc python3-dev python3-venv e2fsprogs openssl bubblewrap $1"
    make_venv "$2"
    PATH=$venv/bin:$PATH:/usr/sbin:/sbin
    export PATH
}
