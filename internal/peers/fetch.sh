#!/bin/sh
# Unpacks the foreign programs that the tests use, mail programs and others, into
# .cache/peers of this checkout. Nothing is installed: packages are downloaded,
# opened with dpkg-deb -x, and run from there. Root is not needed.
#
#   .cache/peers/root         the unpacked Debian packages
#   .cache/peers/node         Nodemailer, standardwebhooks
#   .cache/peers/stamp        what the cache holds; the same wish again is a no-op
#   .cache/peers-unavailable  why this machine cannot have a cache (exit 3)
#
# Exit status: 0 complete, 3 no package manager here, 1 the fetch broke.
set -eu

edition=4 # raise it when this script unpacks the same packages differently
nodemailer=10.6.0
standardwebhooks=1.1.1

here=$(cd "$(dirname "$0")" && pwd)
checkout=$(cd "$here/../.." && pwd)
cache=${POSTERN_PEERS:-$checkout/.cache/peers}
reason=$cache-unavailable

have() { command -v "$1" >/dev/null 2>&1; }
say() { echo "peers: $*" >&2; }

mkdir -p "$(dirname "$cache")"
rm -f "$reason"
if ! have apt-get || ! have dpkg-deb; then
	echo "no apt-get and dpkg-deb on this machine: foreign mail programs cannot be fetched" >"$reason"
	say "$(cat "$reason")"
	exit 3
fi

# The two mail servers conflict as packages, so each is resolved by itself.
clients="swaks libnet-ssleay-perl msmtp libnss-wrapper haproxy pgbouncer"
have curl || clients="$clients curl"
have python3 || clients="$clients python3"
have npm || clients="$clients nodejs node-nodemailer"
have systemd-analyze || clients="$clients systemd"
postfix="postfix libsasl2-2 libsasl2-modules libsasl2-modules-db sasl2-bin"
exim="exim4-daemon-light"
# The verifiers of DKIM signatures, two of them libraries. Python finds only modules of its own version.
verifiers="opendkim libmail-dkim-perl python3-dkim"
names="nsd unbound ldnsutils"
# Taken without what they need: promtool is one static program, the rest of its
# package and all that it depends on is a web page. Beside these two libraries the shells need
# only those that every machine has; fish asks for a reader of manuals as well.
alone="bash-completion zsh zsh-common fish fish-common libcap2 libpcre2-32-0"
have promtool || alone="$alone prometheus"

wish="edition $edition; $clients; $postfix; $exim; $verifiers; $names; $alone; nodemailer $nodemailer; standardwebhooks $standardwebhooks"
if [ -f "$cache/stamp" ] && [ "$(cat "$cache/stamp")" = "$wish" ]; then
	exit 0
fi

new=$(mktemp -d "$cache.XXXXXX")
trap 'rm -rf "$new"' EXIT
trap 'exit 1' HUP INT TERM
chmod 755 "$new"
mkdir "$new/debs" "$new/root" "$new/lists" "$new/lists/partial" "$new/apt" "$new/apt/archives" "$new/apt/archives/partial"

# Read after the machine's own apt configuration. Its hooks would act on the machine.
cat >"$new/apt.conf" <<END
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Retries "3";
Acquire::Languages "none";
Dir::Cache "$new/apt";
Debug::NoLocking "true";
END

apt() { apt-get -q -c "$new/apt.conf" "$@"; }

# The named packages, and what they need and the machine has not got.
missing() {
	apt -s install "$@" >"$new/plan" || return 1
	{
		awk '$1 == "Inst" && $2 !~ /^(libc6|libc-bin)$/ { print $2 }' "$new/plan"
		printf '%s\n' "$@"
	} >>"$new/names"
}

download() {
	: >"$new/names"
	# shellcheck disable=SC2086 # lists of words
	missing $clients && missing $postfix && missing $exim && missing $verifiers && missing $names || return 1
	# shellcheck disable=SC2086
	printf '%s\n' $alone >>"$new/names"
	sort -u "$new/names" >"$new/wanted"
	# shellcheck disable=SC2046
	(cd "$new/debs" && apt download $(cat "$new/wanted"))
}

log=$new/log
if ! download >"$log" 2>&1; then
	# The machine's package lists are missing or too old: read private ones.
	{
		echo "Dir::State::lists \"$new/lists\";"
	} >>"$new/apt.conf"
	apt update >>"$log" 2>&1 || : # one dead source of several does no harm
	rm -f "$new"/debs/*
	if ! download >>"$log" 2>&1; then
		tail -n 20 "$log" >&2
		say "downloading the packages failed"
		exit 1
	fi
fi

for deb in "$new"/debs/*.deb; do
	dpkg-deb -x "$deb" "$new/root"
done
rm -f "$new/root/usr/bin/prometheus" # 120 MB, of which only promtool beside it is used
(cd "$new/root/usr/share" && rm -rf prometheus doc doc-base man info locale lintian bug)
find "$new/root" -type f -perm /6000 -exec chmod ug-s {} +

# Debian's Node.js loads parts of itself from this folder. It is told to find it
# below its working directory, which Cache.Program sets, by a path as long.
for lib in "$new"/root/usr/lib/*/libnode.so.*; do
	[ -f "$lib" ] || continue
	sed -i 's|/usr/share/nodejs/|.////share/nodejs/|g' "$lib"
done

if have npm; then
	mkdir "$new/node"
	if ! npm install --prefix "$new/node" --no-audit --no-fund --ignore-scripts \
		--loglevel=error "nodemailer@$nodemailer" "standardwebhooks@$standardwebhooks" >"$log" 2>&1; then
		tail -n 20 "$log" >&2
		say "npm install failed"
		exit 1
	fi
fi

rm -rf "$new/debs" "$new/lists" "$new/apt" "$new/apt.conf" "$new/plan" "$new/names" "$new/wanted" "$new/log"
printf '%s\n' "$wish" >"$new/stamp"
rm -rf "$cache"
if ! mv -T "$new" "$cache"; then
	# Another fetch was quicker; the same wish is as good.
	[ -f "$cache/stamp" ] && [ "$(cat "$cache/stamp")" = "$wish" ]
fi
