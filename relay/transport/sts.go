package transport

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/idna"
)

// Mode is what an MTA-STS policy wants of senders (RFC 8461 section 5).
type Mode string

const (
	Enforce Mode = "enforce" // no mail to a host that fails it
	Testing Mode = "testing" // mail as without a policy
	None    Mode = "none"    // the domain has none any more
)

const (
	maxAge = 31_557_600 * time.Second // a year
	minAge = 5 * time.Minute          // a policy that is to last less is kept for so long all the same
	maxMX  = 1_000                    // patterns
)

// STS is an MTA-STS policy.
type STS struct {
	Mode   Mode
	MX     []string      // patterns, in A-labels and lower case
	MaxAge time.Duration // minAge to maxAge
}

// parseID reads the TXT records at _mta-sts (RFC 8461 section 3.1), and returns the id of the
// domain's policy. ok is false where there is no policy: no record of MTA-STS, several, or a
// malformed one.
func parseID(records []string) (id string, ok bool) {
	records = slices.DeleteFunc(slices.Clone(records), func(s string) bool {
		version, _, _ := strings.Cut(s, ";")
		return strings.TrimRight(version, " \t") != "v=STSv1"
	})
	if len(records) != 1 {
		return "", false
	}
	for _, field := range strings.Split(records[0], ";")[1:] {
		name, value, _ := strings.Cut(strings.Trim(field, " \t"), "=")
		if name != "id" {
			continue
		}
		strange := strings.ContainsFunc(value, func(r rune) bool {
			return (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		})
		return value, value != "" && len(value) <= 32 && !strange
	}
	return "", false
}

// parseSTS reads the text of a policy (RFC 8461 section 3.2). Of a field that occurs twice, and is
// not mx, the first counts; unknown fields are ignored.
func parseSTS(text string) (STS, error) {
	fields := map[string]string{}
	var p STS
	for line := range strings.Lines(text) {
		name, value, found := strings.Cut(strings.TrimRight(line, " \t\r\n"), ":")
		value = strings.TrimLeft(value, " \t")
		switch {
		case !found:
		case name == "mx":
			pattern, err := parsePattern(value)
			if err != nil {
				return STS{}, err
			}
			if p.MX = append(p.MX, pattern); len(p.MX) > maxMX {
				return STS{}, fmt.Errorf("the policy has more than %d mx", maxMX)
			}
		case fields[name] == "":
			fields[name] = value
		}
	}
	p.Mode = Mode(fields["mode"])
	seconds, err := strconv.ParseUint(fields["max_age"], 10, 33) // ten digits at most
	switch {
	case fields["version"] != "STSv1":
		return STS{}, fmt.Errorf("the policy's version is %.40q and not STSv1", fields["version"])
	case p.Mode != Enforce && p.Mode != Testing && p.Mode != None:
		return STS{}, fmt.Errorf("the policy's mode is %.40q", fields["mode"])
	case err != nil:
		return STS{}, fmt.Errorf("the policy's max_age is %.40q", fields["max_age"])
	case p.Mode != None && len(p.MX) == 0:
		return STS{}, errors.New("the policy names no mx")
	}
	p.MaxAge = min(max(time.Duration(seconds)*time.Second, minAge), maxAge)
	return p, nil
}

// parsePattern reads the name of a mail host, which may begin with "*." (RFC 8461 section 4.1).
// A-labels are meant there; U-labels are used all the same.
func parsePattern(s string) (string, error) {
	star := ""
	if rest, ok := strings.CutPrefix(s, "*."); ok {
		star, s = "*.", rest
	}
	ascii, err := idna.Lookup.ToASCII(strings.TrimSuffix(s, "."))
	if err != nil || ascii == "" {
		return "", fmt.Errorf("the policy's mx %.80q is not the name of a host", s)
	}
	return star + ascii, nil
}

// Allows reports that the policy has a mail host. A star stands for one label.
func (p *STS) Allows(host string) bool {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	return slices.ContainsFunc(p.MX, func(pattern string) bool {
		if parent, ok := strings.CutPrefix(pattern, "*."); ok {
			label, rest, _ := strings.Cut(host, ".")
			return label != "" && rest == parent
		}
		return host == pattern
	})
}
