#!/bin/sh
# Builds the Debian package of this checkout:
#
#   sh configs/debian/build.sh [FOLDER]     FOLDER/postern_VERSION_ARCH.deb (default bin)
#   sh configs/debian/build.sh --version    only say which version that is
#
# VERSION (default: git describe) is a version as git tells it, GOARCH the machine
# that it is for. The same sources and Go make the same package, byte for byte:
# all times in it are SOURCE_DATE_EPOCH, by default that of the commit.
set -eu
umask 022
export LC_ALL=C TZ=UTC

here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

fail() {
	echo "deb: $*" >&2
	exit 1
}

command -v dpkg-deb >/dev/null || fail "dpkg-deb is missing: it is in Debian's and Ubuntu's package dpkg"

VERSION=${VERSION:-$(git describe --tags --always --dirty 2>/dev/null || echo 0)}
COMMIT=${COMMIT:-$(git rev-parse HEAD 2>/dev/null || :)}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || date +%s)}
export SOURCE_DATE_EPOCH

# v1.2.3 is 1.2.3; v1.2.3-rc1 comes before it; v1.2.3-4-gabcdef is four commits
# later; a commit without a tag comes before every release, in the order of time.
debian_version() {
	version=$1 dirty=
	case $version in *-dirty) version=${version%-dirty} dirty=+dirty ;; esac
	case $version in
	v[0-9]* | [0-9]*.*)
		printf '%s%s\n' "${version#v}" "$dirty" |
			sed -E 's/-([0-9]+)-g([0-9a-f]+)/+\1.g\2/; s/-/~/; s/-/./g'
		;;
	*) printf '0~%s.g%s%s\n' "$(date -u -d "@$SOURCE_DATE_EPOCH" +%Y%m%d%H%M%S)" "$version" "$dirty" ;;
	esac
}
version=$(debian_version "$VERSION")
dpkg --validate-version "$version" 2>/dev/null || fail "VERSION=$VERSION makes no Debian version ($version)"
if [ "${1:-}" = --version ]; then
	echo "$version"
	exit
fi
out=${1:-bin}

goarch=${GOARCH:-$(go env GOARCH)}
unset GOARCH # what runs here is for here
case $goarch in
amd64 | arm64 | riscv64 | s390x) arch=$goarch ;;
arm) arch=armhf ;;
386) arch=i386 ;;
ppc64le) arch=ppc64el ;;
*) fail "no Debian architecture for GOARCH=$goarch" ;;
esac

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
root=$work/root
doc=$root/usr/share/doc/postern
chmod 755 "$work"

compile() { # GOARCH FILE
	CGO_ENABLED=0 GOOS=linux GOARCH=$1 go build -trimpath -buildvcs=false \
		-ldflags "-s -w -X main.version=$VERSION -X main.commit=$COMMIT" -o "$2" ./cmd/postern
}

install -d "$root/usr/bin" "$root/etc/postern" "$root/usr/lib/systemd/system" "$doc/examples" "$root/DEBIAN"
compile "$goarch" "$root/usr/bin/postern"
# Generated files come from a program that runs here.
program=$root/usr/bin/postern
if [ "$goarch" != "$(go env GOHOSTARCH)" ]; then
	program=$work/postern
	compile "$(go env GOHOSTARCH)" "$program"
fi

install -m 644 configs/systemd/* "$root/usr/lib/systemd/system/"
install -m 644 configs/debian/postern.toml "$root/etc/postern/postern.toml"

install -d "$root/usr/share/man/man1"
"$program" man "$root/usr/share/man/man1" >/dev/null
gzip -9n "$root"/usr/share/man/man1/*.1

completion() { # SHELL FILE
	install -d "$(dirname "$root/$2")"
	"$program" completion "$1" >"$root/$2"
}
completion bash usr/share/bash-completion/completions/postern
completion zsh usr/share/zsh/vendor-completions/_postern
completion fish usr/share/fish/vendor_completions.d/postern.fish

install -m 644 configs/debian/copyright README.md "$doc/"
cp -R docs "$doc/docs"
cp -R configs/grafana configs/postern.toml configs/prometheus "$doc/examples/"
printf 'postern (%s) unstable; urgency=medium\n\n  * Built from revision %s.\n\n -- %s  %s\n' \
	"$version" "${COMMIT:-$VERSION}" "$(sed -n 's/^Maintainer: //p' configs/debian/control)" \
	"$(date -u -R -d "@$SOURCE_DATE_EPOCH")" | gzip -9n >"$doc/changelog.gz"
go run ./internal/tools/sbom -version "$VERSION" -out "$doc" "$root/usr/bin/postern"
gzip -9n "$doc/LICENSES"
install -d "$root/usr/share/lintian/overrides"
install -m 644 configs/debian/lintian-overrides "$root/usr/share/lintian/overrides/postern"

for script in postinst prerm postrm; do
	install -m 755 "configs/debian/$script" "$root/DEBIAN/$script"
done
echo /etc/postern/postern.toml >"$root/DEBIAN/conffiles"
find "$root" -type d -exec chmod 755 {} +
find "$root/usr/share" "$root/etc" -type f -exec chmod 644 {} +
(cd "$root" && find usr -type f -printf '%P\0' | sort -z | sed -z 's|^|usr/|' | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
size=$(du -k --apparent-size -s --exclude=DEBIAN "$root" | cut -f1)
sed -e "s/@VERSION@/$version/; s/@ARCH@/$arch/; s/@SIZE@/$size/" configs/debian/control >"$root/DEBIAN/control"
find "$root" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$out"
file=$out/postern_${version}_$arch.deb
dpkg-deb --root-owner-group "-Z${COMPRESSION:-xz}" --build "$root" "$work/deb" >/dev/null
mv "$work/deb" "$file"
echo "$file"
