package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"net/textproto"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/peers"
)

// A reading is a notice as somebody else's software reads it.
type reading struct {
	Header     map[string]string // some fields of the message
	ReportType string
	Parts      []string // media types
	Text       string   // the first part
	Message    map[string]string
	Recipients []map[string]string // the groups of fields of the report
	Returned   string              // the third part
	Defects    []string
}

// readByGo is a reading by Go's library.
func readByGo(t *testing.T, data []byte) (b reading) {
	t.Helper()
	m, err := mail.ReadMessage(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%v:\n%s", err, data)
	}
	if _, err := m.Header.Date(); err != nil {
		b.Defects = append(b.Defects, err.Error())
	}
	kind, params, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" {
		t.Fatalf("Content-Type is %q: %v", m.Header.Get("Content-Type"), err)
	}
	b.Header, b.ReportType = some(textproto.MIMEHeader(m.Header)), params["report-type"]
	parts := multipart.NewReader(m.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if err == io.EOF {
			return b
		}
		if err != nil {
			t.Fatalf("%v:\n%s", err, data)
		}
		var octets io.Reader = part
		if part.Header.Get("Content-Transfer-Encoding") == "quoted-printable" {
			octets = quotedprintable.NewReader(part)
		}
		text, err := io.ReadAll(octets)
		if err != nil {
			t.Fatalf("%v:\n%s", err, data)
		}
		kind, _, err := mime.ParseMediaType(part.Header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		b.Parts = append(b.Parts, kind)
		switch len(b.Parts) {
		case 1:
			b.Text = string(text)
		case 2:
			b.report(t, text)
		case 3:
			b.Returned = string(text)
		}
	}
}

// report reads the groups of fields of a delivery-status part (RFC 3464 section 2.1).
func (b *reading) report(t *testing.T, text []byte) {
	t.Helper()
	groups := textproto.NewReader(bufio.NewReader(bytes.NewReader(append(text, "\r\n\r\n"...))))
	for {
		fields, err := groups.ReadMIMEHeader()
		if err != nil && err != io.EOF {
			t.Fatalf("%v:\n%s", err, text)
		}
		switch {
		case len(fields) == 0:
			return
		case b.Message == nil:
			b.Message = some(fields)
		default:
			b.Recipients = append(b.Recipients, some(fields))
		}
	}
}

// some are the fields that tests look at, by their names in lower case.
func some(fields textproto.MIMEHeader) map[string]string {
	chosen := make(map[string]string)
	for name, values := range fields {
		name = strings.ToLower(name)
		if slices.Contains(bounceFields, name) {
			chosen[name] = strings.Join(strings.Fields(strings.Join(values, " | ")), " ")
		}
	}
	return chosen
}

var bounceFields = []string{
	"from", "to", "message-id", "references", "auto-submitted", "mime-version",
	"reporting-mta", "arrival-date", "final-recipient", "action", "status", "remote-mta", "diagnostic-code", "last-attempt-date",
}

// byPython prints the reading of Python's email package as JSON.
const byPython = `
import email, email.policy, json, sys
m = email.message_from_binary_file(sys.stdin.buffer, policy=email.policy.default)
wanted = sys.argv[1].split(",")
def some(fields):
    return {k.lower(): " ".join(str(v).split()) for k, v in fields.items() if k.lower() in wanted}
parts = list(m.iter_parts())
def returned(part):
    content = part.get_content()
    return content if isinstance(content, str) else content.as_bytes().decode()
groups = parts[1].get_payload()
defects = [repr(d) for p in m.walk() for d in p.defects]
defects += [name + ": " + repr(d) for p in m.walk() for name, v in p.items() for d in getattr(v, "defects", [])]
json.dump({
    "Header": some(m), "ReportType": m.get_param("report-type"), "Parts": [p.get_content_type() for p in parts],
    "Message": some(groups[0]), "Recipients": [some(g) for g in groups[1:] if len(g)],
    "Text": parts[0].get_content(), "Returned": returned(parts[2]), "Defects": defects,
}, sys.stdout)
`

func readByPython(t *testing.T, data []byte) (b reading) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := peers.Require(t, "python3").Command(ctx, "-c", byPython, strings.Join(bounceFields, ","))
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(data), &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("python3: %v\n%s", err, &errs)
	}
	if err := json.Unmarshal(out, &b); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return b
}

// A wantedNotice is what a notice has to say of its one recipient.
type wantedNotice struct {
	recipient string // with its type
	status    string
	reply     string
	kind      string // of the third part
	returned  string // the end of it
	ours      bool   // no host said the reply
}

// noSuch is that the upstream has no mailbox for an address.
func noSuch(address, kind, returned string) wantedNotice {
	return wantedNotice{"rfc822; " + address, "5.1.1", noMailbox, kind, returned, false}
}

// checkBounce wants m to be the notice to the sender of message id, and to be traceable
// itself.
func checkBounce(t *testing.T, s *site, m peers.Message, id string, want wantedNotice) {
	t.Helper()
	if m.From != "" || !slices.Equal(m.To, []string{s.account.name}) {
		t.Errorf("the notice arrived from <%s> to %q", m.From, m.To)
	}
	for reader, b := range map[string]reading{"Go": readByGo(t, m.Data), "Python": readByPython(t, m.Data)} {
		t.Run(reader+" reads the notice", func(t *testing.T) { b.check(t, want) })
	}
	if i := bytes.IndexFunc(m.Data, func(r rune) bool { return r >= 0x80 }); i >= 0 {
		t.Errorf("the notice is not ASCII at %d:\n%s", i, m.Data)
	}
	if !bytes.Contains(m.Data, []byte(id)) {
		t.Errorf("the notice does not name the message %s:\n%s", id, m.Data)
	}
	own := regexp.MustCompile(`(?im)^Message-ID: <([0-9a-f-]{36})@relay\.test>\r?$`).FindSubmatch(m.Data)
	if own == nil {
		t.Fatalf("no Message-ID of ours:\n%s", m.Data)
	}
	h := s.finished(t, string(own[1]))
	if got := results(h, s.account.name); len(got) != 1 || !strings.HasPrefix(got[0], "delivered 250 ") || h.Message.Sender != "" {
		t.Errorf("the notice's trace: %+v", h)
	}
}

func (b reading) check(t *testing.T, want wantedNotice) {
	if len(b.Defects) > 0 {
		t.Errorf("defects: %q", b.Defects)
	}
	if b.ReportType != "delivery-status" || !slices.Equal(b.Parts, []string{"text/plain", "message/delivery-status", want.kind}) {
		t.Errorf("%s report of %q", b.ReportType, b.Parts)
	}
	if len(b.Recipients) != 1 {
		t.Fatalf("%d recipients: %v", len(b.Recipients), b.Recipients)
	}
	for _, group := range []struct {
		got, want map[string]string
	}{
		{b.Header, map[string]string{
			"from": "Mail Delivery System <MAILER-DAEMON@relay.test>", "auto-submitted": "auto-replied",
			"references": "<plain@example.com>", "mime-version": "1.0",
		}},
		{b.Message, map[string]string{"reporting-mta": "dns; relay.test"}},
		{b.Recipients[0], map[string]string{
			"final-recipient": want.recipient, "action": "failed", "status": want.status,
			"remote-mta": "", // an address says nothing outside
		}},
	} {
		for name, want := range group.want {
			if got := group.got[name]; got != want {
				t.Errorf("%s: %q, want %q", name, got, want)
			}
		}
	}
	if diagnostic := b.Recipients[0]["diagnostic-code"]; want.ours != (diagnostic == "") || !want.ours && !says(diagnostic, "smtp; "+want.reply) {
		t.Errorf("diagnostic-code: %q", diagnostic)
	}
	if to, err := mail.ParseAddress(b.Header["to"]); err != nil || to.Address != "alice@example.com" {
		t.Errorf("To: %q", b.Header["to"])
	}
	for _, date := range []string{b.Message["arrival-date"], b.Recipients[0]["last-attempt-date"]} {
		if when, err := mail.ParseDate(date); err != nil || time.Since(when).Abs() > time.Hour {
			t.Errorf("date %q: %v", date, err)
		}
	}
	if returned := strings.Join(strings.Fields(b.Returned), " "); !strings.Contains(returned, "Message-ID: <plain@example.com>") || !strings.HasSuffix(returned, want.returned) {
		t.Errorf("the message is not returned: %q", b.Returned)
	}
	if _, reply, _ := strings.Cut(want.reply, want.status+" "); !strings.Contains(strings.Join(strings.Fields(b.Text), " "), reply) {
		t.Errorf("people read %q", b.Text)
	}
}
