package auth

import (
	"bufio"
	"cmp"
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"postern/auth/audit"
	"postern/internal/pg"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

// ErrImport is a file of users that cannot be imported.
var ErrImport = errors.New("the file cannot be imported")

// LineError is a fault in a line of a file of users, and the remedy.
type LineError struct {
	Line int
	Err  error
}

func (e LineError) Error() string { return fmt.Sprintf("line %d: %v", e.Line, e.Err) }
func (e LineError) Unwrap() error { return e.Err }

// ImportError is an ErrImport that names the lines: the first twenty that are wrong.
type ImportError struct{ Lines []LineError }

func (e *ImportError) Error() string {
	text := make([]string, len(e.Lines))
	for i, l := range e.Lines {
		text[i] = l.Error()
	}
	return ErrImport.Error() + ": " + strings.Join(text, "\n")
}

func (e *ImportError) Unwrap() []error {
	errs := []error{ErrImport}
	for _, l := range e.Lines {
		errs = append(errs, l)
	}
	return errs
}

// And returns e with more lines, in their order.
func (e *ImportError) And(more []LineError) *ImportError {
	lines := slices.Concat(e.Lines, more)
	slices.SortStableFunc(lines, func(a, b LineError) int { return cmp.Compare(a.Line, b.Line) })
	return &ImportError{lines[:min(len(lines), importErrors)]}
}

// ImportUser is a user to be added, checked and in canonical form.
type ImportUser struct {
	Line     int // of the file
	Name     string
	Password string // in clear, or "" when there is a Hash
	Hash     string // bcrypt, or argon2id in PHC form
	Senders  []string
	Resend   []string // those of Senders by which the user may also resend others' mail
}

const (
	importErrors  = 20 // reported together
	importBatch   = 1000
	importTimeout = 10 * time.Minute // of the transaction
)

// importColumns are the columns of a file, in any order.
var importColumns = []string{"name", "password", "hash", "senders", "resend"}

// ParseImport reads users from CSV (RFC 4180). Its first line names the columns name,
// password, hash, senders and resend, of which only name must be there; each user has a
// password or a hash, or neither and then no way to log in yet. Patterns of senders are
// separated by spaces; those in resend need not be in senders too. The error is ErrImport,
// or an ImportError if the columns are valid: then the users of the other lines come with it.
func ParseImport(r io.Reader) ([]ImportUser, error) {
	p := importParser{csv: csv.NewReader(withoutBOM(r)), lines: map[string]int{}}
	if err := p.header(); err != nil {
		return nil, err
	}
	for p.next() {
	}
	if len(p.errs) > 0 {
		return p.users, &ImportError{p.errs}
	}
	return p.users, nil
}

// withoutBOM skips the byte order mark that spreadsheets begin with.
func withoutBOM(r io.Reader) io.Reader {
	b := bufio.NewReader(r)
	if mark, _ := b.Peek(3); string(mark) == "\xef\xbb\xbf" {
		_, _ = b.Discard(3)
	}
	return b
}

type importParser struct {
	csv     *csv.Reader
	columns []string
	users   []ImportUser
	lines   map[string]int // by canonical name
	errs    []LineError
}

func (p *importParser) header() error {
	columns, err := p.csv.Read()
	if err != nil {
		return fmt.Errorf("%w: line 1 must name the columns, such as name,password,senders: %w", ErrImport, err)
	}
	for i, c := range columns {
		columns[i] = strings.ToLower(strings.TrimSpace(c))
		if !slices.Contains(importColumns, columns[i]) || slices.Contains(columns[:i], columns[i]) {
			return fmt.Errorf("%w: line 1: column %q: name each of %s at most once, and no others",
				ErrImport, c, strings.Join(importColumns, ", "))
		}
	}
	if !slices.Contains(columns, "name") {
		return fmt.Errorf("%w: line 1 names no column %q: write %s there", ErrImport, "name", strings.Join(importColumns, ","))
	}
	p.columns = columns
	return nil
}

// next reads one user; false is the end of the file, or of its readable part.
func (p *importParser) next() bool {
	record, err := p.csv.Read()
	if err == io.EOF {
		return false
	}
	if err != nil && !errors.Is(err, csv.ErrFieldCount) {
		p.errs = append(p.errs, unreadable(err))
		return false
	}
	line, _ := p.csv.FieldPos(0)
	if err != nil {
		err = fmt.Errorf("it has %d fields, the first line has %d: put fields with a comma, such as argon2id hashes, in double quotes", len(record), len(p.columns))
	} else {
		err = p.user(record, line)
	}
	if err != nil {
		p.errs = append(p.errs, LineError{line, err})
	}
	return len(p.errs) < importErrors
}

// unreadable is the fault of a line after which nothing can be read.
func unreadable(err error) LineError {
	var syntax *csv.ParseError
	if errors.As(err, &syntax) {
		return LineError{syntax.StartLine, syntax.Err}
	}
	return LineError{0, err}
}

func (p *importParser) user(record []string, line int) error {
	field := map[string]string{}
	for i, c := range p.columns {
		field[c] = record[i]
	}
	u := ImportUser{Line: line, Password: field["password"], Hash: strings.TrimSpace(field["hash"])}
	var err error
	if u.Name, err = CanonicalName(strings.TrimSpace(field["name"])); err != nil {
		return fmt.Errorf("name %q: %w", field["name"], err)
	}
	if first, twice := p.lines[u.Name]; twice {
		return fmt.Errorf("%s is on line %d already: remove one of them", u.Name, first)
	}
	p.lines[u.Name] = line
	if u.Senders, err = canonicalPatterns(strings.Fields(field["senders"])); err != nil {
		return fmt.Errorf("senders: %w", err)
	}
	if err := u.addResend(strings.Fields(field["resend"])); err != nil {
		return fmt.Errorf("resend: %w", err)
	}
	if len(u.Senders) == 0 && !strings.Contains(u.Name, "@") {
		return fmt.Errorf("%s is not an address: name in senders the addresses that the user may send as", u.Name)
	}
	if err := u.checkPassword(); err != nil {
		return err
	}
	p.users = append(p.users, u)
	return nil
}

// addResend adds patterns by which the user may also resend others' mail.
func (u *ImportUser) addResend(patterns []string) error {
	for _, p := range patterns {
		canonical, err := resendPattern(p)
		if err != nil {
			return err
		}
		u.Resend = append(u.Resend, canonical)
		if !slices.Contains(u.Senders, canonical) {
			u.Senders = append(u.Senders, canonical)
		}
	}
	return nil
}

// checkPassword says what is wrong with the password or the hash, without revealing them.
func (u ImportUser) checkPassword() error {
	switch {
	case u.Password != "" && u.Hash != "":
		return errors.New("there is a password and a hash: leave one of them empty")
	case u.Password != "":
		return checkPassword(u.Password)
	case u.Hash != "":
		if _, err := parseHash(u.Hash); err != nil {
			return fmt.Errorf("the hash is neither bcrypt ($2b$, cost up to %d) nor argon2id "+
				"($argon2id$v=19$m=,t=,p=$salt$hash, up to %d KiB and %d passes): give a password instead, or neither",
				maxBcryptCost, maxMemory, maxTime)
		}
	}
	return nil
}

// Import adds users, all or none, and returns how many; with dryRun it only finds out whether
// it could. The error is an ImportError with the lines of users that exist already, each
// ErrExists, or of the database.
func (s *Store) Import(ctx context.Context, users []ImportUser, dryRun bool) (added int, err error) {
	hashes := make([]string, len(users))
	if !dryRun {
		if hashes, err = s.importHashes(ctx, users); err != nil {
			return 0, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	err = pgx.BeginFunc(ctx, s.db, func(tx pgx.Tx) error {
		taken, err := takenNames(ctx, tx, users)
		if err == nil && len(taken) > 0 {
			err = &ImportError{taken}
		}
		if err != nil || dryRun {
			return err
		}
		for from := 0; from < len(users); from += importBatch {
			to := min(from+importBatch, len(users))
			if err := s.insertUsers(ctx, tx, users[from:to], hashes[from:to]); err != nil {
				return err
			}
		}
		return nil
	})
	if pg.Code(err) == pg.UniqueViolation {
		return 0, fmt.Errorf("import: a user was added meanwhile: %w", ErrExists)
	}
	if err != nil {
		return 0, fmt.Errorf("import: %w", err)
	}
	return len(users), nil // nobody has anything cached of new users: nothing to announce
}

// importHashes hashes the passwords in clear, on all cores but with the memory of one
// hash for each.
func (s *Store) importHashes(ctx context.Context, users []ImportUser) ([]string, error) {
	hashes := make([]string, len(users))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(runtime.GOMAXPROCS(0))
	for i, u := range users {
		if hashes[i] = u.Hash; u.Password == "" {
			continue
		}
		group.Go(func() (err error) {
			if err = ctx.Err(); err == nil {
				hashes[i], err = s.hash(u.Password)
			}
			return err
		})
	}
	return hashes, group.Wait()
}

// Taken returns the lines of users that exist already, the first twenty of them.
func (s *Store) Taken(ctx context.Context, users []ImportUser) ([]LineError, error) {
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	taken, err := takenNames(ctx, s.db, users)
	if err != nil {
		return nil, fmt.Errorf("import: %w", err)
	}
	return taken, nil
}

func takenNames(ctx context.Context, db pg.DB, users []ImportUser) (taken []LineError, err error) {
	rows, err := db.Query(ctx, `
		select n.i from unnest($1::text[]) with ordinality n(name, i)
		join app_user u on u.name = n.name order by n.i limit $2`, importNames(users), importErrors)
	if err != nil {
		return nil, err
	}
	var i int
	_, err = pgx.ForEachRow(rows, []any{&i}, func() error {
		u := users[i-1]
		taken = append(taken, LineError{u.Line, fmt.Errorf("user %s: %w: remove the line", u.Name, ErrExists)})
		return nil
	})
	return taken, err
}

func importNames(users []ImportUser) []string {
	names := make([]string, len(users))
	for i, u := range users {
		names[i] = u.Name
	}
	return names
}

func (s *Store) insertUsers(ctx context.Context, tx pgx.Tx, users []ImportUser, hashes []string) error {
	names := importNames(users)
	var owners, patterns []string
	var resend []bool
	for _, u := range users {
		for _, pattern := range u.Senders {
			owners, patterns, resend = append(owners, u.Name), append(patterns, pattern), append(resend, slices.Contains(u.Resend, pattern))
		}
	}
	var b pgx.Batch
	b.Queue(`insert into app_user (name) select unnest($1::text[])`, names)
	b.Queue(`
		insert into credential (user_id, kind, hash)
		select u.id, 'password', n.hash from unnest($1::text[], $2::text[]) n(name, hash)
		join app_user u on u.name = n.name where n.hash <> ''`, names, hashes)
	b.Queue(`
		insert into sender_pattern (user_id, pattern, resend)
		select u.id, n.pattern, n.resend from unnest($1::text[], $2::text[], $3::boolean[]) n(name, pattern, resend)
		join app_user u on u.name = n.name on conflict do nothing`, owners, patterns, resend)
	if err := tx.SendBatch(ctx, &b).Close(); err != nil {
		return err
	}
	deeds := make([]audit.Deed, len(names))
	for i, name := range names {
		deeds[i] = audit.Deed{Action: "user import", Object: name}
	}
	return audit.Record(ctx, tx, s.actor, deeds...)
}
