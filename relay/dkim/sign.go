package dkim

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// The fields that are signed. One that is named once more than the message has it cannot be added
// without breaking the signature (RFC 6376 section 8.15).
var (
	// always are named once more, whether or not they are there.
	always = []string{"from", "reply-to", "subject", "to", "cc"}
	// ifThere are named once more if they are there, and so are those that begin with "content-".
	ifThere = []string{"sender", "date", "message-id", "mime-version", "in-reply-to", "references"}
)

// rule says how often a field is named: as often as it is there and so many times more, or never.
func rule(name string) (more int, signed bool) {
	switch {
	case slices.Contains(always, name), slices.Contains(ifThere, name):
		return 1, true
	case !plain(name), name == "content-length": // servers take that one off (Postfix, message_drop_headers)
		return 0, false
	case strings.HasPrefix(name, "content-"):
		return 1, true
	}
	// Lists and resenders add theirs on the way.
	return 0, strings.HasPrefix(name, "resent-") || strings.HasPrefix(name, "list-")
}

// maxNamed bounds the list of a signature, which a header with thousands of names would make longer
// than itself. A name that does not fit with all its fields is not signed; From comes first.
const maxNamed = 500

// plain reports a name that can stand in the list of a signature: others may have its marks.
func plain(name string) bool {
	return name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") == ""
}

// Sign returns the DKIM-Signature fields of a message, one for each key, to be put in front of it.
// header is the header section as it will be sent; octets behind an empty line are ignored.
// bodyHash is of BodyHash; at is when the message was signed, in seconds. The same arguments give
// the same octets. The error is a key's.
func Sign(header []byte, keys []Key, bodyHash []byte, at time.Time) ([]byte, error) {
	names, data := signed(header)
	tags := lastTags(names, bodyHash)
	all := make([]byte, 0, (len(tags)+fieldRoom)*len(keys))
	for _, k := range keys {
		start := len(all)
		all = append(k.appendFirstTags(all, at), tags...) // the field up to its last tag, b=, which is empty
		digest := sha256.Sum256(bytes.TrimSuffix(appendRelaxed(data, "dkim-signature", all[start:]), crlf))
		signature, err := k.sign(digest[:])
		if err != nil {
			return nil, fmt.Errorf("sign with %s._domainkey.%s: %w", k.Selector, k.Domain, err)
		}
		all = appendFolded(all, base64.StdEncoding.EncodeToString(signature))
		all = append(all, crlf...)
	}
	return all, nil
}

// fieldRoom is for a signature field without its lastTags, as a rule.
const fieldRoom = 640

func (k Key) sign(digest []byte) ([]byte, error) {
	if k.Algorithm == Ed25519 { // RFC 8463 section 3: the hash is the message
		return k.Signer.Sign(rand.Reader, digest, crypto.Hash(0))
	}
	return k.Signer.Sign(rand.Reader, digest, crypto.SHA256)
}

// appendFirstTags adds the tags of a signature field that depend on its key.
func (k Key) appendFirstTags(b []byte, at time.Time) []byte {
	for _, text := range []string{"DKIM-Signature: v=1; a=", string(k.Algorithm), "-sha256; c=relaxed/relaxed;\r\n\td=", k.Domain, "; s=", k.Selector, "; t="} {
		b = append(b, text...)
	}
	return append(strconv.AppendInt(b, at.Unix(), 10), ";\r\n\t"...)
}

// lastTags are those that all keys' signatures have in common.
func lastTags(names []string, bodyHash []byte) []byte {
	b := append(make([]byte, 0, 1024), "h="...)
	column := len("\th=")
	for i, name := range names {
		if i > 0 {
			b = append(b, ':')
			column++
		}
		if column+len(name) > lineWidth {
			b = append(b, "\r\n\t "...)
			column = len("\t ")
		}
		b = append(b, name...)
		column += len(name)
	}
	b = append(b, ";\r\n\tbh="...)
	b = base64.StdEncoding.AppendEncode(b, bodyHash)
	return append(b, ";\r\n\tb="...)
}

// lineWidth is about how long a line becomes (RFC 5322 section 2.1.1).
const lineWidth = 74

func appendFolded(b []byte, text string) []byte {
	for len(text) > lineWidth {
		b = append(append(b, text[:lineWidth]...), "\r\n\t "...)
		text = text[lineWidth:]
	}
	return append(b, text...)
}

// signed returns the names for the h= tag, and the canonical octets of the fields in their order.
func signed(header []byte) (names []string, data []byte) {
	order := slices.Clone(always)
	named := map[string][]field{} // what there is of each name
	for _, f := range split(header) {
		if _, ok := rule(f.name); !ok {
			continue
		}
		if named[f.name] == nil && !slices.Contains(always, f.name) {
			order = append(order, f.name)
		}
		named[f.name] = append(named[f.name], f)
	}
	data = make([]byte, 0, len(header)+1024) // with room for our own field
	names = make([]string, 0, 2*len(order))
	for _, name := range order {
		more, _ := rule(name)
		if len(names)+len(named[name])+more > maxNamed {
			continue
		}
		for _, f := range slices.Backward(named[name]) { // RFC 6376 section 5.4.2
			names = append(names, name)
			data = appendRelaxed(data, name, f.octets)
		}
		for range more {
			names = append(names, name)
		}
	}
	return names, data
}

// field is one of a header section.
type field struct {
	name   string // in small letters
	octets []byte // with its last CRLF
}

func split(header []byte) []field {
	fields := make([]field, 0, 32) // more than most have
	start, at := 0, 0              // of the last field, and of the line
	for line := range bytes.Lines(header) {
		end := at + len(line)
		if len(bytes.TrimRight(line, "\r\n")) == 0 {
			break
		}
		if last := len(fields) - 1; last >= 0 && isSpace(line[0]) {
			fields[last].octets = header[start:end]
		} else {
			start = at
			fields = append(fields, field{nameOf(line), line})
		}
		at = end
	}
	return fields
}

// nameOf is "" for a name beyond ASCII: what its small letters are may be disputed.
func nameOf(line []byte) string {
	name, _, _ := bytes.Cut(line, []byte(":"))
	name = bytes.TrimRight(name, " \t")
	if bytes.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		return ""
	}
	return string(bytes.ToLower(name))
}

// appendRelaxed adds a field in relaxed canonicalization (RFC 6376 section 3.4.2).
func appendRelaxed(b []byte, name string, octets []byte) []byte {
	b = append(append(b, name...), ':')
	start := len(b)
	for i := bytes.IndexByte(octets, ':') + 1; i < len(octets); {
		if c := octets[i]; isSpace(c) || c == '\r' || c == '\n' {
			i++
			continue
		}
		end := i
		for end < len(octets) && !isSpace(octets[end]) && octets[end] != '\r' && octets[end] != '\n' {
			end++
		}
		if len(b) > start {
			b = append(b, ' ')
		}
		b = append(b, octets[i:end]...)
		i = end
	}
	return append(b, crlf...)
}
