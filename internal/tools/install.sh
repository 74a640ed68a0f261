#!/bin/sh
# Makes sure that what "make" needs beside Go is on this machine:
#
#   sh internal/tools/install.sh postgres   PostgreSQL's server programs
#   sh internal/tools/install.sh cc         a C compiler, for the race detector
#
# Missing programs are installed with apt-get, by root or through sudo without a
# password. Where that cannot be, one line says what to install, and the exit
# status is 1. No database server is set up or started: the project starts its
# own, in its own folder.
set -eu

have() { command -v "$1" >/dev/null 2>&1; }

fail() {
	echo "$*" >&2
	exit 1
}

# Where distributions keep the programs; internal/pgserver looks there too.
have_postgres() {
	have initdb && return 0
	for dir in /usr/lib/postgresql/*/bin /usr/lib/postgresql*/bin /usr/libexec/postgresql* \
		/usr/pgsql-*/bin /usr/local/pgsql/bin \
		/opt/homebrew/opt/postgresql*/bin /usr/local/opt/postgresql*/bin; do
		[ -x "$dir/initdb" ] && [ -x "$dir/postgres" ] && return 0
	done
	return 1
}

have_cc() { have "${CC:-gcc}" || have cc; }

as_root() {
	if [ "$(id -u)" = 0 ]; then
		"$@"
	else
		sudo -n "$@"
	fi
}

# may_install WHAT PACKAGE...: say in one line why not, if so.
may_install() {
	what=$1
	shift
	if ! have apt-get; then
		fail "$what is missing: install it with your package manager (on Debian and Ubuntu: $*)"
	fi
	if [ "$(id -u)" != 0 ] && ! sudo -n true 2>/dev/null; then
		fail "$what is missing: run 'sudo apt-get install $*'"
	fi
}

# install WHAT PACKAGE...
install() {
	what=$1
	shift
	echo "installing $what: apt-get install $*"
	as_root apt-get -q update >/dev/null || : # one dead source of several does no harm
	as_root env DEBIAN_FRONTEND=noninteractive \
		apt-get -q -y -o Dpkg::Use-Pty=0 --no-install-recommends install "$@" </dev/null ||
		fail "$what is missing, and 'apt-get install $*' failed"
}

# Debian's package would make a database cluster and start it as a service,
# unless its configuration says otherwise while it is being installed.
no_cluster=/etc/postgresql-common/createcluster.d/postern-install.conf

install_postgres() {
	may_install "PostgreSQL" postgresql
	trap 'as_root rm -f "$no_cluster"' EXIT
	as_root mkdir -p /etc/postgresql-common/createcluster.d
	echo "create_main_cluster = false" | as_root tee "$no_cluster" >/dev/null
	install "PostgreSQL" postgresql
	have_postgres || fail "PostgreSQL was installed, but initdb and postgres are not where they are looked for"
}

install_cc() {
	may_install "a C compiler" gcc libc6-dev
	install "a C compiler" gcc libc6-dev
}

for need in "$@"; do
	case $need in
	postgres) have_postgres || install_postgres ;;
	cc) have_cc || install_cc ;;
	*) fail "install.sh: what is $need?" ;;
	esac
done
