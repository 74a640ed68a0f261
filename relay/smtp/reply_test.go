package smtp

import (
	"errors"
	"io"
	"testing"
)

func TestReplyAppend(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]Reply{
		"250 2.0.0 ok\r\n":        OK(250, 0, 0, "ok"),
		"354 go ahead\r\n":        Intermediate(354, "go ahead"),
		"334 \r\n":                Intermediate(334, ""),
		"450 4.2.1 try later\r\n": Temporary(450, 2, 1, "try later"),
		"550-5.7.1 one\r\n550-5.7.1 two\r\n550 5.7.1 three\r\n": Permanent(550, 7, 1, "one\ntwo\nthree"),
		"550 x??250 ok?\r\n": {Code: 550, Text: "x\r\x00250 ok\x7f"},
	} {
		if got := string(r.Append(nil)); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}

func TestReplyClasses(t *testing.T) {
	t.Parallel()
	for _, r := range []Reply{OK(250, 0, 0, ""), Intermediate(354, ""), Temporary(450, 0, 0, ""), Permanent(550, 0, 0, ""), {}} {
		got := [4]bool{r.IsPositive(), r.IsIntermediate(), r.IsTemporary(), r.IsPermanent()}
		want := [4]bool{r.Code == 250, r.Code == 354, r.Code == 450, r.Code == 550}
		if got != want || r.IsZero() != (r.Code == 0) {
			t.Errorf("%d: %v", r.Code, got)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a code of another class was let through")
		}
	}()
	Permanent(450, 0, 0, "not permanent")
}

func TestReplyString(t *testing.T) {
	t.Parallel()
	for want, r := range map[string]Reply{
		"":                  {},
		"250":               {Code: 250},
		"550 5.7.1 one two": Permanent(550, 7, 1, "one\ntwo"),
		"220 mx.example":    {Code: 220, Text: "mx.example"},
	} {
		if got := r.String(); got != want {
			t.Errorf("%+v: %q, want %q", r, got, want)
		}
	}
}

func TestError(t *testing.T) {
	t.Parallel()
	e := &Error{Reply: Permanent(501, 5, 4, "no"), Err: io.EOF}
	if e.Error() != "501 5.5.4 no: EOF" || !errors.Is(e, io.EOF) {
		t.Errorf("%q, %v", e.Error(), errors.Is(e, io.EOF))
	}
	if s := (&Error{Reply: e.Reply}).Error(); s != "501 5.5.4 no" {
		t.Errorf("%q", s)
	}
}
