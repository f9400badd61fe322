# shellcheck shell=bash
# Sourced by scripts/release: each file of a release on a bare Debian of its own.

# check_release DIRECTORY OWN [SUITE...]: lintian, then each way to install, with how long it takes. OWN is this system's suite.
check_release() {
    local suite package
    rows=()
    (cd "$1" && sha256sum --quiet -c SHA256SUMS)
    for package in "$1"/*.deb; do
        say "lintian $(basename "$package")"
        lintian --allow-root --fail-on error --tag-display-limit 0 "$package"
    done
    git -C "$work/source" init -q
    git -C "$work/source" add --force .
    git -C "$work/source" -c user.name=release -c user.email=release commit -q -m "what is released"
    for suite in "${@:2}"; do
        check_way deb "$suite" "$1"
        check_way wheel "$suite" "$1"
    done
    for suite in "${@:3}"; do
        check_way pipx "$suite" "$1"
    done
    check_way sdist "$2" "$1"
    check_way clone "$2" "$1"
    say "seconds from a bare Debian, without package lists, to the end of the main job (load: $(cut -d ' ' -f 1-3 /proc/loadavg)):"
    printf '%s\n' "${rows[@]}" >&2
}

# check_way WAY SUITE DIRECTORY: runs scripts/releasing/ways/WAY on a bare system, and then WAY.after, whose time does not count.
# They find the release in /release, and the checkout in /checkout.
check_way() {
    local system=$work/$1-$2 start end
    say "$1 on a bare Debian ($2)"
    fresh_system "$work/base-$2" "$system"
    mkdir "$system/root/release" "$system/root/checkout"
    cp -r "$3/." "$project/scripts/releasing/main-job" "$project/scripts/releasing/ways" "$system/root/release"
    mount --bind "$work/source" "$system/root/checkout"
    start=$EPOCHREALTIME
    in_system "$system" bash -euo pipefail "/release/ways/$1" >&2
    end=$EPOCHREALTIME
    rows+=("$(printf '%-8s %-10s %6d' "$1" "$2" $(((${end/./} - ${start/./}) / 1000000)))")
    if [ -e "$system/root/release/ways/$1.after" ]; then in_system "$system" bash -euo pipefail "/release/ways/$1.after" >&2; fi
    drop_system "$system"
}
