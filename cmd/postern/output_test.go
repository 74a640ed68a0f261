package main

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/story"
	"postern/internal/pgtest"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

// hidden are characters that steer a terminal, reorder text or take no room.
const hidden = "\x00\x07\x1b\r\x7f\u0085\u009b\u00ad\u034f\u061c\u115f\u1160\u17b4\u180b\u180e\u200b\u200c\u200d\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e" +
	"\u2060\u2061\u2064\u2066\u2067\u2068\u2069\u206a\u206f\u3164\ufe00\ufe0f\ufeff\uffa0\ufff9\ufffb\U0001bca0\U000e0001\U000e0041\U000e007f\U000e0100\U000e01ef"

// shows fails when one of the hidden characters is in an output.
func shows(t *testing.T, about, out string) {
	t.Helper()
	if i := strings.IndexAny(out, hidden); i >= 0 {
		t.Errorf("%s prints %+q in %+q", about, []rune(out[i:])[0], out)
	}
}

// Whoever prints, and whatever for, it goes through one writer.
func TestL2NothingHiddenIsPrinted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	shell(t, db, exitDone, "user", "add", "alice@example.com")
	shell(t, db, exitDone, "credential", "add", "alice@example.com", "--generate", "--label", "a"+strings.ReplaceAll(hidden, "\x00", "")+"b")
	for _, args := range [][]string{
		{"credential", "list", "alice@example.com"}, {"credential", "list", "alice@example.com", "--json"},
		{"user", "show", "alice@example.com"}, {"audit"}, {"audit", "--json"}, {"__complete", "credential", "revoke", ""},
	} {
		out := shell(t, db, exitDone, args...)
		shows(t, strings.Join(args, " "), out)
		if args[len(args)-1] == "--json" && !json.Valid([]byte(out)) {
			t.Errorf("%v prints no JSON: %s", args, out)
		}
	}
	for _, args := range [][]string{{"trace", "bob\u200b@example.net"}, {"user", "show", "no\u202e"}, {"nonsense\u200b"}, {"user", "list", "\x1b]0;x\x07"}} {
		var stdout, stderr bytes.Buffer
		run(t.Context(), args, []string{"POSTERN_DATABASE_URL=" + db.URL}, nil, &stdout, &stderr)
		shows(t, strings.Join(args, " "), stdout.String()+stderr.String())
	}
}

func TestL2TraceHidesNothing(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	h := &desk.History{}
	h.Message.MessageID, h.Message.Sender, h.Message.ClientHello, h.Message.Node = "<a"+hidden+"b@c>", "x"+hidden, "y"+hidden, "z"+hidden
	h.Events = []desk.Event{{At: time.Now(), Recipient: "r" + hidden, Result: "deferred", RemoteMTA: "m" + hidden, Reply: "451 " + hidden, TLS: hidden,
		Left: []queue.LeftWay{{Way: "first", Host: "h" + hidden, Reply: "454 its quota is spent" + hidden}}}}
	if err := (&story.Story{History: h}).Print(screen.Writer{Writer: &out}); err != nil {
		t.Fatal(err)
	}
	shows(t, "trace", out.String())
	if !strings.Contains(out.String(), `\u200b`) {
		t.Errorf("nothing shows what is there:\n%s", &out)
	}
	if !regexp.MustCompile(`(?m) left +first +h.* 454 its quota is spent`).MatchString(out.String()) {
		t.Errorf("the way that was left is not there:\n%s", &out)
	}
}

func TestL2Escape(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a\u200bb":           `a\u200bb`,
		"\u202egnp.exe":      `\u202egnp.exe`,
		"x\U000e0041":        `x\udb40\udc41`,
		"\x1b[31m\r\n\ttab":  `\u001b[31m\u000d\u000a\u0009tab`,
		"\xff\xc3":           `\xff\xc3`,
		"replaced \ufffd":    "replaced \ufffd",
		"grüße, 日本語, Ελλάδα": "grüße, 日本語, Ελλάδα",
	} {
		if got := screen.Printable(text); got != want {
			t.Errorf("%+q is printed as %+q, want %+q", text, got, want)
		}
	}
	for _, r := range hidden {
		if screen.Printable(string(r)) == string(r) {
			t.Errorf("%+q is printed", r)
		}
	}
}

// Mail that is set aside says so in a listing: its last reply is not why it waits.
func TestListingTellsWhatIsSetAside(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	list := []desk.Entry{{State: desk.StateHeld, SetAside: "its size is -1", LastReply: "451 4.7.1 later"}, {State: desk.StateWaiting, LastReply: "452 4.3.1 full"}}
	table := screen.TableOf(story.EntryHead(), story.EntryRow, story.Entries(list, nil))
	if err := table.Print(&out); err != nil {
		t.Fatal(err)
	}
	if text := out.String(); !strings.Contains(text, "set aside: its size is -1") || strings.Contains(text, "451") || !strings.Contains(text, "452 4.3.1 full") {
		t.Error(text)
	}
}
