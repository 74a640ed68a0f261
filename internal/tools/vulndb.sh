#!/bin/sh
# Fails, with exit status 2, unless the folder is a copy of Go's vulnerability database:
#
#   sh internal/tools/vulndb.sh FOLDER
#
# govulncheck takes any folder, and finds nothing in one without advisories.
set -eu

refuse() {
	echo "$1 is not a copy of Go's vulnerability database, which is vulndb.zip of vuln.go.dev unpacked: $2" >&2
	exit 2
}

for file in index/db.json index/modules.json; do
	[ -f "$1/$file" ] && [ -r "$1/$file" ] || refuse "$1" "it has no $file that can be read"
done
as_of=$(sed -n 's/.*"modified": *"\([^"]*\)".*/\1/p' "$1/index/db.json")
[ -n "$as_of" ] || refuse "$1" "index/db.json does not say of when it is"
grep -q '"path": *"stdlib"' "$1/index/modules.json" || refuse "$1" "index/modules.json does not know the standard library"
advisories=$(find "$1/ID/" -name 'GO-*.json' 2>/dev/null | wc -l)
[ "$advisories" -gt 0 ] || refuse "$1" "ID has no advisories"
echo "$advisories advisories, as of $as_of"
