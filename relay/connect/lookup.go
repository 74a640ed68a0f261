package connect

import (
	"errors"
	"fmt"
	"strings"

	"postern/relay/resolver"
	"postern/relay/smtp"
)

// isHost reports whether a host or domain may have that name: labels of letters,
// digits, hyphens and (there are some) underscores, the last one not a number (RFC
// 1123 section 2.1, RFC 3696 section 2).
func isHost(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, isNoLetter) {
			return false
		}
	}
	return len(name) <= 253 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// errVersion is the trouble of a host whose addresses are all of a version of IP that is not used.
var errVersion = errors.New("it has no address of the version of IP that this server uses")

// errOutsideDNS is the trouble of a name that is never looked up.
var errOutsideDNS = errors.New("names below .onion and .invalid are not looked up")

// isOutsideDNS reports a special-use name that DNS is not asked about: .onion is for Tor
// only, and the question would tell others of it (RFC 7686 section 2); nothing below
// .invalid exists, whatever a resolver says (RFC 6761 section 6.4).
func isOutsideDNS(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.EqualFold(last, "onion") || strings.EqualFold(last, "invalid")
}

func isNoLetter(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

func lookupTrouble(name string, err error) *Trouble {
	text := "DNS does not answer for " + name
	switch {
	case errors.Is(err, resolver.ErrAliases):
		text = "in DNS the " + resolver.ErrAliases.Error() + " for " + name
	case errors.Is(err, errVersion):
		text = name + ": " + errVersion.Error()
	case errors.Is(err, errOutsideDNS):
		text = name + ": " + errOutsideDNS.Error()
	}
	return &Trouble{Reply: smtp.Temporary(451, 4, 3, text), Err: fmt.Errorf("look up %s: %w", name, err), Crowded: isOurs(err)}
}
