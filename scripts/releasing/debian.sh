# shellcheck shell=bash
# Sourced by scripts/release: the package for the Debian that this runs on.

# debian_package SOURCE WHEELS DIRECTORY: makes, with WHEELS of mystfuse and pyfuse3 that this system's libraries are for,
# DIRECTORY/mystfuse_VERSION_ARCHITECTURE.deb. What it has depends on the Python here, and
# on libfuse's and libcrypto's names; so each Debian gets a package of its own, and its version says for which one.
debian_package() (
    set -euo pipefail
    # shellcheck source=/dev/null
    . /etc/os-release
    source=$1 build=$(mktemp -d) packaging=$1/scripts/releasing/debian
    trap 'remove_tree "$build"' EXIT
    root=$build/debian/mystfuse
    "$source/scripts/install" --prefix /usr --destdir "$root" --wheels "$2"
    rm "$root/usr/lib/mystfuse/installed"

    say "making a package for Debian $VERSION_ID"
    mkdir -p "$root/DEBIAN" "$root/usr/share/lintian/overrides"
    doc=$root/usr/share/doc/mystfuse
    site=$(echo "$root"/usr/lib/mystfuse/venv/lib/python3*/site-packages)
    version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' "$source/mystfuse/__init__.py")-1~deb$VERSION_ID
    cp "$packaging/control" "$build/debian/control"
    printf 'mystfuse (%s) %s; urgency=medium\n\n  * The release %s: changelog.gz has what is new.\n\n -- %s  %s\n' \
        "$version" "$VERSION_CODENAME" "${version%-*}" "$(sed -n 's/^Maintainer: //p' "$packaging/control")" \
        "$(date -u -R -d "@$SOURCE_DATE_EPOCH")" > "$build/debian/changelog"

    # Debian's places and forms, where they are not everybody's.
    mkdir -p "$root/usr/share/zsh/vendor-completions"
    mv "$root/usr/share/zsh/site-functions/_mystfuse" "$root/usr/share/zsh/vendor-completions/"
    rmdir "$root/usr/share/zsh/site-functions"
    cp "$build/debian/changelog" "$doc/changelog.Debian"
    cp "$source/CHANGELOG.md" "$doc/changelog"
    gzip -9n "$doc"/changelog* "$root"/usr/share/man/man*/*
    install -m 644 "$packaging/lintian-overrides" "$root/usr/share/lintian/overrides/mystfuse"
    /usr/bin/python3 "$source/scripts/releasing/copyright.py" "$packaging/copyright" "$site" > "$doc/copyright"
    install -m 755 "$packaging"/{postinst,prerm,postrm} "$root/DEBIAN/"

    ln -sfnr "$root/usr/bin/python3" "$root/usr/lib/mystfuse/venv/bin/python3"
    # Sources of the modules that compilers made, and what checks types only.
    find "$site" -type f \( -name '*.c' -o -name '*.h' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.pxi' -o -name '*.pyi' -o -name py.typed \) -delete
    find "$site" -name '*.so' -exec strip --strip-unneeded --remove-section=.comment --remove-section=.note {} +
    find "$root" -type d -empty -delete
    chmod -R u=rwX,go=rX "$root"

    cd "$build"
    find debian/mystfuse/usr -name '*.so' -print0 |
        xargs -0 dpkg-shlibdeps -Tdebian/substvars 2> shlibdeps.log || { cat shlibdeps.log >&2; exit 1; }
    # The environment is for this one Python.
    /usr/bin/python3 -c 'import sys; v, n = sys.version_info[:2]; print(f"python:Depends=python3 (>= {v}.{n}~), python3 (<< {v}.{n + 1}~)")' >> debian/substvars
    dpkg-gencontrol -pmystfuse -cdebian/control -Tdebian/substvars -fdebian/files -Pdebian/mystfuse
    (cd debian/mystfuse && find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum > DEBIAN/md5sums)
    dpkg-deb --root-owner-group -Zxz --build debian/mystfuse "$3" >/dev/null
)
