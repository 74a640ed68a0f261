package events

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"postern/cmd/postern/screen"
	"postern/internal/pg"
	"postern/relay/feed"
)

// poll is how long a follower waits for more; while the database does not answer, longer.
const (
	poll    = 500 * time.Millisecond
	trouble = 3 * time.Second
)

// listing is what is printed, and how.
type listing struct {
	filter feed.Filter
	after  feed.Cursor
	follow bool // wait for more until ctx ends
	limit  int  // events at most; 0 for all
	json   bool
	out    io.Writer
	warn   func(error) // of what does not end a follower

	typed flags
}

// print prints events. A follower whose database stops answering goes on when it answers again.
func (l *listing) print(ctx context.Context, db pg.DB) error {
	if err := l.find(ctx, db); err != nil {
		return err
	}
	printed, begun, warned := 0, false, false
	for {
		page, err := feed.Read(ctx, db, l.after, l.filter)
		var gone *feed.GoneError
		switch {
		case l.follow && ctx.Err() != nil:
			return nil
		case err == nil:
			begun, warned = true, false
		case !l.follow || !begun || errors.As(err, &gone):
			return err
		default:
			if !warned {
				l.warn(err)
			}
			warned = true
		}
		for i := range page.Events {
			if l.limit > 0 && printed == l.limit {
				return nil
			}
			if err := l.printEvent(&page.Events[i]); err != nil {
				return err
			}
			printed++
		}
		if err == nil {
			l.after = page.Next
		}
		if !l.follow && !page.More || l.limit > 0 && printed == l.limit {
			return nil
		}
		if !page.More {
			wait(ctx, err)
		}
	}
}

func wait(ctx context.Context, err error) {
	pause := poll
	if err != nil {
		pause = trouble
	}
	select {
	case <-ctx.Done():
	case <-time.After(pause):
	}
}

func (l *listing) printEvent(e *feed.Event) error {
	if !l.json {
		_, err := fmt.Fprintln(l.out, screen.Printable(text(e)))
		return err
	}
	enc := json.NewEncoder(l.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(e)
}

// text is the line of an event for people.
func text(e *feed.Event) string {
	words := []string{screen.LocalTime(e.At), fmt.Sprintf("%-19s", e.Kind)}
	if e.Message != nil {
		words = append(words, e.Message.ID.String())
	}
	for _, word := range []string{e.User, e.Actor, e.Action, e.Object, e.Recipient} {
		if word != "" {
			words = append(words, word)
		}
	}
	if e.Message != nil && e.Recipient == "" {
		words = append(words, "to "+screen.Few(e.Message.Recipients))
	}
	if r := e.Reply; r != nil {
		words = append(words, strings.Join(strings.Fields(strings.TrimPrefix(strconv.Itoa(r.Code), "0")+" "+r.Enhanced+" "+r.Text), " "))
	}
	return strings.Join(words, "  ")
}
