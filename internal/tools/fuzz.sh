#!/bin/sh
# Runs every fuzz target of the project, one after the other, each for the time
# given ("go test" fuzzes one target at a time):
#
#   sh internal/tools/fuzz.sh 60s
set -eu
time=${1:?how long for each target, as in 60s}

cd "$(dirname "$0")/../.."
go list -f '{{.ImportPath}} {{.Dir}}' ./... | while read -r package dir; do
	for target in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing\.F).*/\1/p' "$dir"/*_test.go 2>/dev/null); do
		echo "$package $target"
		go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$package" </dev/null
	done
done
