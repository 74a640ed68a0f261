package message

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"postern/relay/smtp"
)

// Bounds of the fields for the relay itself, in octets.
const (
	MaxKey      = 255
	MaxTags     = 10 // of a message
	MaxTag      = 64
	MaxMetadata = 1 << 10
)

// ForUs is what the message says in fields for the relay itself, which are removed:
// docs/duplicates.md and docs/tags.md.
type ForUs struct {
	Key      string   // X-Postern-Idempotency-Key: visible ASCII, at most MaxKey octets; "" without
	Tags     []string // X-Postern-Tag, each once, visible ASCII of 1 to MaxTag octets
	Metadata []byte   // X-Postern-Metadata: a JSON object that PostgreSQL can store; nil without
}

// toUs is a field for the relay, and its body as far as it is kept.
type toUs struct {
	field known
	body  []byte
}

// add appends a line. Of octets beyond all bounds one is kept.
func (f *toUs) add(line []byte) {
	const most = 2 * MaxMetadata
	line = bytes.TrimRight(line, "\r\n")
	f.body = append(f.body, line[:min(len(line), most+1-len(f.body))]...)
}

// beginToUs takes the first line of a field. There are few of them, whatever the client sends.
func (s *scanner) beginToUs(field known, value []byte) error {
	if field == fieldTag {
		if s.tags++; s.tags > MaxTags {
			return badField(field, fmt.Sprintf("occur at most %d times", MaxTags))
		}
	}
	s.toUs, s.inToUs = append(s.toUs, toUs{field: field}), true
	s.toUs[len(s.toUs)-1].add(value)
	return nil
}

// readToUs reads the fields for the relay.
func (s *scanner) readToUs() error {
	for i := range s.toUs {
		f := &s.toUs[i]
		value, err := strings.Trim(string(f.body), " \t"), error(nil)
		switch f.field {
		case fieldKey:
			s.facts.Key = value
			if !isWord(value, MaxKey) {
				err = badField(f.field, fmt.Sprintf("be 1 to %d visible ASCII characters without spaces", MaxKey))
			}
		case fieldTag:
			switch {
			case !isWord(value, MaxTag):
				err = badField(f.field, fmt.Sprintf("be 1 to %d visible ASCII characters without spaces", MaxTag))
			case !slices.Contains(s.facts.Tags, value):
				s.facts.Tags = append(s.facts.Tags, value)
			}
		default:
			s.facts.Metadata = metadata(value)
			if s.facts.Metadata == nil {
				err = badField(f.field, fmt.Sprintf("be a JSON object of at most %d octets", MaxMetadata))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func badField(f known, must string) error {
	return refusal(smtp.Permanent(554, 6, 0, "The "+fields[f].name+" field must "+must))
}

func isWord(s string, most int) bool {
	return len(s) > 0 && len(s) <= most && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// metadata returns a JSON object as the type jsonb of PostgreSQL takes it, nil for anything else. It
// knows no NUL, and numbers are those of other languages.
func metadata(s string) []byte {
	var object map[string]any
	if len(s) > MaxMetadata || strings.Contains(s, `\u0000`) || hasControl([]byte(s)) {
		return nil
	}
	if json.Unmarshal([]byte(s), &object) != nil || object == nil {
		return nil
	}
	b, err := json.Marshal(object)
	if err != nil {
		return nil
	}
	return b
}
