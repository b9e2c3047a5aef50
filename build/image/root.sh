#!/bin/sh
# Make the root of an image from the files of installed Debian packages and of all that those
# depend on: root.sh FOLDER PACKAGE ... Left out are package managers and what only they need,
# documentation (but not the licences), translations, and Python's installer, tests and editor.
set -eu
root=$1
shift

# Only to install packages, or to ask somebody at a terminal.
not_needed='apt|debconf|debconf-2.0|debian-archive-keyring|debianutils|dpkg|gpgv|init-system-helpers|mawk|openssl|perl-base|readline-common|tar'
packages=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts \
  --no-breaks --no-replaces --no-enhances "$@" | grep -E '^[a-z0-9]' | sed 's/:.*//' | sort -u |
  grep -vxE "$not_needed")

mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64" "$root/var/lib/dpkg/status.d"
for folder in bin sbin lib lib64; do ln -s "usr/$folder" "$root/$folder"; done

for package in $packages; do
  files=$(dpkg-query --listfiles "$package" 2>/dev/null) || continue
  echo "$files" | while read -r file; do
    [ -d "$file" ] && [ ! -L "$file" ] || echo "$file"
  done | grep -vE '^/usr/share/(man|info|locale|lintian|bug|doc-base|pixmaps|applications|bash-completion)/' |
    grep -vE '^/usr/share/doc/.*/(changelog|NEWS|README|examples|TODO|ACKNOWLEDGEMENTS|RELNOTES|AUTHORS|FAQ|INTRO|POSIX|COMPAT|inputrc|NOTICE)' |
    grep -vE '^/usr/lib/python3[.0-9]*/(ensurepip|idlelib|lib2to3|pydoc_data|test|tkinter|turtledemo|unittest/test)/' |
    while read -r file; do
      mkdir -p "$root$(dirname "$file")"
      # The folders that are links are made above, and a package may remove files of its own.
      [ -L "$root$file" ] || [ ! -e "$file" ] && [ ! -L "$file" ] || cp -a "$file" "$root$file"
    done
  # Where scanners for vulnerabilities look for the packages of an image without dpkg.
  dpkg-query --status "$package" > "$root/var/lib/dpkg/status.d/$package"
done

# What the packages' scripts make when they are installed.
mkdir -p "$root/etc/ssl/certs"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp -a /usr/bin/python3 "$root/usr/bin/"
mkdir -p "$root/dev" "$root/proc" "$root/sys" "$root/run" "$root/tmp" "$root/var/tmp"
chmod 1777 "$root/tmp" "$root/var/tmp"
for file in passwd group; do cp "/usr/share/base-passwd/$file.master" "$root/etc/$file"; done
printf 'hosts: files dns\n' > "$root/etc/nsswitch.conf"
rm -f "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf"
ldconfig -r "$root"
rm -rf "$root/var/cache/ldconfig"
