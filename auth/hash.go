package auth

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/bcrypt"
	"golang.org/x/text/secure/precis"
)

// Cost is what one argon2id hash takes (RFC 9106 section 3.1).
type Cost struct {
	Memory  uint32 // KiB
	Time    uint32 // passes
	Threads uint8
}

// defaultCost is the minimum that OWASP recommends; about 35 ms of one core.
var defaultCost = Cost{Memory: 19 << 10, Time: 2, Threads: 1}

// The most that a stored hash may cost. A row that asks for more is broken or hostile, and
// is never computed.
const (
	maxMemory     = 128 << 10 // KiB
	maxTime       = 10
	maxThreads    = 16
	maxBcryptCost = 14
	maxBcryptKey  = 72 // octets; bcrypt ignores what is behind them
)

var errHash = errors.New("stored password hash is not usable")

// phc is an argon2id hash in PHC string form,
// $argon2id$v=19$m=19456,t=2,p=1$salt$hash.
type phc struct {
	cost Cost
	salt []byte
	sum  []byte
}

var phcEncoding = base64.RawStdEncoding.Strict()

func (p phc) String() string {
	return fmt.Sprintf("$argon2id$v=%d$m=%d,t=%d,p=%d$%s$%s", argon2.Version,
		p.cost.Memory, p.cost.Time, p.cost.Threads,
		phcEncoding.EncodeToString(p.salt), phcEncoding.EncodeToString(p.sum))
}

// parsePHC takes exactly what String writes, with costs within the bounds.
func parsePHC(s string) (phc, error) {
	parts := strings.Split(s, "$")
	if len(parts) != 6 || parts[0] != "" || parts[1] != "argon2id" || parts[2] != "v=19" {
		return phc{}, fmt.Errorf("%w: not $argon2id$v=19$", errHash)
	}
	cost, err := parseCost(parts[3])
	if err != nil {
		return phc{}, err
	}
	salt, err := phcEncoding.DecodeString(parts[4])
	if err != nil || len(salt) < 8 || len(salt) > 64 {
		return phc{}, fmt.Errorf("%w: salt", errHash)
	}
	sum, err := phcEncoding.DecodeString(parts[5])
	if err != nil || len(sum) < 16 || len(sum) > 64 {
		return phc{}, fmt.Errorf("%w: sum", errHash)
	}
	p := phc{cost: cost, salt: salt, sum: sum}
	if p.String() != s { // base64 ignores line ends, for one
		return phc{}, fmt.Errorf("%w: not in canonical form", errHash)
	}
	return p, nil
}

func parseCost(s string) (Cost, error) {
	fields := strings.Split(s, ",")
	if len(fields) != 3 {
		return Cost{}, fmt.Errorf("%w: parameters", errHash)
	}
	var n [3]uint64
	for i, bound := range []struct {
		key string
		max uint64
	}{{"m=", maxMemory}, {"t=", maxTime}, {"p=", maxThreads}} {
		digits, ok := strings.CutPrefix(fields[i], bound.key)
		v, err := strconv.ParseUint(digits, 10, 32)
		if !ok || err != nil || v == 0 || v > bound.max || strconv.FormatUint(v, 10) != digits {
			return Cost{}, fmt.Errorf("%w: parameter %s", errHash, bound.key)
		}
		n[i] = v
	}
	if n[0] < 8*n[2] { // RFC 9106 section 3.1
		return Cost{}, fmt.Errorf("%w: memory below 8p", errHash)
	}
	return Cost{Memory: uint32(n[0]), Time: uint32(n[1]), Threads: uint8(n[2])}, nil
}

func (p phc) matches(password string) bool {
	sum := argon2.IDKey([]byte(password), p.salt, p.cost.Time, p.cost.Memory, p.cost.Threads, uint32(len(p.sum)))
	return subtle.ConstantTimeCompare(sum, p.sum) == 1
}

// hashPassword makes the hash that is stored for a password.
func hashPassword(password string, cost Cost) string {
	p := phc{cost: cost, salt: make([]byte, 16)}
	rand.Read(p.salt) // never fails (crypto/rand)
	p.sum = argon2.IDKey([]byte(preparePassword(password)), p.salt, cost.Time, cost.Memory, cost.Threads, 32)
	return p.String()
}

// work is the work of a hash of this cost, in KiB processed.
func (c Cost) work() uint64 { return uint64(c.Memory) * uint64(c.Time) }

// outdated reports that a stored hash should be replaced: it is of another kind, or cheaper
// to guess than a current one.
func outdated(h hasher, now Cost) bool {
	p, ok := h.(phc)
	return !ok || p.cost.work() < now.work()
}

// decoy is a hash that costs as much as a real one and that nothing matches.
func decoy(cost Cost) phc {
	p := phc{cost: cost, salt: make([]byte, 16), sum: make([]byte, 32)}
	rand.Read(p.salt)
	rand.Read(p.sum)
	return p
}

// hasher is a stored hash ready to be compared.
type hasher interface{ matches(password string) bool }

// parseHash reads a stored hash: argon2id, or bcrypt from an import.
func parseHash(s string) (hasher, error) {
	if strings.HasPrefix(s, "$2a$") || strings.HasPrefix(s, "$2b$") || strings.HasPrefix(s, "$2y$") {
		cost, err := bcrypt.Cost([]byte(s))
		if err != nil || cost > maxBcryptCost || len(s) != 60 {
			return nil, fmt.Errorf("%w: bcrypt", errHash)
		}
		return bcryptHash(s), nil
	}
	return parsePHC(s)
}

type bcryptHash string

func (h bcryptHash) matches(password string) bool {
	// A longer password would match by its first 72 octets alone.
	key := []byte(password)[:min(len(password), maxBcryptKey)]
	return bcrypt.CompareHashAndPassword([]byte(h), key) == nil && len(password) <= maxBcryptKey
}

// preparePassword makes two encodings of one password equal (RFC 8265 section 4.2,
// OpaqueString); a password that the profile refuses is compared unchanged.
func preparePassword(password string) string {
	if isGraphicASCII(password) {
		return password
	}
	if s, err := precis.OpaqueString.String(password); err == nil {
		return s
	}
	return password
}
