// Package migrations holds the database's schema as numbered SQL files and
// brings a database up to it.
//
// The first files are the schema of version 0.1.0, one file for each package that writes
// the tables in it. Until that version is released they may be edited; an older database
// is then refused, and must be created anew. After that, files are only ever added: a file
// that some database has applied is never edited, renamed or removed. There is no way back;
// the next file corrects a mistake.
//
// Files are named NNNN_name.sql. Each runs in one transaction together with the row in
// schema_migration that records it, so a file is applied whole or not at all, and never
// twice. Any number of nodes may call Apply concurrently: each step is taken under an
// advisory lock.
//
// Programs of two versions may run on one database during an upgrade. The first line
// of a file may say "-- Runs with: 0007": a program whose newest migration is 0007, or
// a later one, runs correctly on a database that has this file, beside programs that
// know it. Without the line it runs with no older program: a forgotten line costs a
// stop, the other default would cost mail. The row that records a file keeps this number,
// for programs that do not have the file; two releases with one schema are equal in it.
//
// It fails, and changes nothing more, when an applied file has since been
// changed and when the database knows a migration that this program does not
// and may not run with, which means that a newer program has been here.
package migrations

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
)

//go:embed *.sql
var files embed.FS

// runsWith is the first line of a file that runs with older programs.
var runsWith = regexp.MustCompile(`^-- Runs with: ([0-9]{4})\n`)

// Migration is one file.
type Migration struct {
	Version  int    // the number in front of the file's name, from 1
	Name     string // the file's name without number and extension
	Checksum string // SHA-256 of the file, in hexadecimal
	Oldest   int    // the version that a program must know to run on a database that has this one
	sql      string
}

// String is the file's name without its extension, as in 0001_queue.
func (m Migration) String() string {
	return fmt.Sprintf("%04d_%s", m.Version, m.Name)
}

// All returns the migrations that this program carries, in the order in which
// they are applied.
func All() ([]Migration, error) {
	set, err := load(files)
	if err != nil {
		return nil, err
	}
	next, err := load(nextFiles)
	return append(set, next...), err
}

// Fingerprint changes with the text of any migration. Databases of equal
// fingerprint have equal schemas.
func Fingerprint() (string, error) {
	set, err := All()
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	for _, m := range set {
		fmt.Fprintf(sum, "%s %s\n", m, m.Checksum)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

var fileName = regexp.MustCompile(`^([0-9]{4})_([a-z0-9_]+)\.sql$`)

// load reads every .sql file of a folder. Names sort as their numbers do, since
// all have four digits.
func load(folder fs.FS) ([]Migration, error) {
	names, err := fs.Glob(folder, "*.sql")
	if err != nil {
		return nil, fmt.Errorf("list migrations: %w", err)
	}
	var set []Migration
	for _, name := range names {
		m, err := parse(folder, name)
		if err != nil {
			return nil, err
		}
		if n := len(set); n > 0 && set[n-1].Version == m.Version {
			return nil, fmt.Errorf("migrations %s and %s have the same number", set[n-1], m)
		}
		set = append(set, m)
	}
	return set, nil
}

func parse(folder fs.FS, name string) (Migration, error) {
	part := fileName.FindStringSubmatch(name)
	if part == nil {
		return Migration{}, fmt.Errorf("migration %s is not named NNNN_name.sql", name)
	}
	version, err := strconv.Atoi(part[1])
	if err != nil || version == 0 {
		return Migration{}, fmt.Errorf("migration %s: numbers start at 0001", name)
	}
	text, err := fs.ReadFile(folder, name)
	if err != nil {
		return Migration{}, fmt.Errorf("read migration %s: %w", name, err)
	}
	oldest := version
	if line := runsWith.FindSubmatch(text); line != nil {
		oldest, _ = strconv.Atoi(string(line[1])) // four digits
	}
	if oldest < 1 || oldest > version {
		return Migration{}, fmt.Errorf("migration %s says that it runs with %04d", name, oldest)
	}
	sum := sha256.Sum256(text)
	return Migration{
		Version:  version,
		Name:     part[2],
		Checksum: hex.EncodeToString(sum[:]),
		Oldest:   oldest,
		sql:      string(text),
	}, nil
}
