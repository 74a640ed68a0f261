package feed

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Cursor is a place in the feed, behind a row and its event. The zero Cursor is in front of all that is kept.
type Cursor struct {
	incarnation int64 // when it began, in microseconds since 1970
	feedAt      int64
	source      int
	number      int64 // of a row of audit or event
	key         string
	// lenient: the reader asked for the oldest event or for a time, and is not yet past what retention has
	// deleted. It reads what is left. The text of a cursor does not have it.
	lenient bool
}

// Leniently is the same place for a reader that takes what is left, though retention has deleted events behind it.
func (c Cursor) Leniently() Cursor {
	c.lenient = true
	return c
}

// Lenient reports whether the place is of such a reader, and not yet past what retention has deleted.
func (c Cursor) Lenient() bool { return c.lenient }

// ErrCursor means that a text is not a cursor.
var ErrCursor = errors.New("not a cursor")

// String is the cursor's text, of the letters, digits and marks of a URL: at most 120 octets.
func (c Cursor) String() string {
	return fmt.Sprintf("1-%x-%x-%d-%x-%s", c.incarnation, c.feedAt, c.source, c.number, c.key)
}

// ParseCursor reads the text of a cursor. Its error is ErrCursor.
func ParseCursor(text string) (Cursor, error) {
	var c Cursor
	parts := strings.SplitN(text, "-", 6)
	if len(text) > 120 || len(parts) != 6 || parts[0] != "1" {
		return c, ErrCursor
	}
	c.key = parts[5]
	_, err := fmt.Sscanf(strings.Join(parts[:5], " "), "1 %x %x %d %x", &c.incarnation, &c.feedAt, &c.source, &c.number)
	if err != nil || c.String() != text || c.incarnation < 0 || c.feedAt < 0 || c.source < 0 || c.number < 0 ||
		strings.Trim(c.key, "0123456789abcdefghijklmnopqrstuvwxyz.-") != "" {
		return Cursor{}, ErrCursor
	}
	return c, nil
}

// GoneError says that retention has deleted events behind a cursor.
type GoneError struct {
	Until time.Time // all events that are missing happened before
}

// Error says how to go on.
func (e *GoneError) Error() string {
	return "the cursor is older than what is kept: events until " + e.Until.UTC().Format(time.RFC3339) +
		" may be missing; begin again without a cursor, with the oldest event that is left, or at a time"
}

// state is the feed in the snapshot of a page.
type state struct {
	incarnation int64
	gone        int64
	goneAt      time.Time
	horizon     int64
	ended       *int64 // where the cursor's incarnation ended; nil: it is not known here
	before      *int64 // the last mark that is an hour older than it
}

// resume is where a reader with cursor c goes on. Behind the end of its incarnation the numbers of
// transactions may have been given again.
func (s *state) resume(c Cursor) (Cursor, error) {
	if c == (Cursor{}) {
		c = Cursor{incarnation: s.incarnation, lenient: true}
	}
	if c.incarnation != s.incarnation {
		var ended int64
		switch {
		case s.ended != nil:
			ended = *s.ended
		case s.before != nil:
			ended = *s.before
		}
		if c.feedAt > ended {
			c = Cursor{feedAt: ended, lenient: c.lenient}
		}
		c.incarnation = s.incarnation
	}
	if c.feedAt >= s.gone {
		c.lenient = false
	} else if !c.lenient {
		return c, &GoneError{s.goneAt}
	}
	return c, nil
}
