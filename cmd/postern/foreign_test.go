package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"postern/internal/peers"
	"postern/internal/pgtest"
)

// modes are the two ways in: port 587 and port 465.
var modes = []peers.TLS{peers.StartTLS, peers.Implicit}

// eachClient runs a test for each foreign client and each way in, until one fails:
// the others would only wait for the same thing.
func eachClient(t *testing.T, test func(t *testing.T, client string, mode peers.TLS)) {
	t.Helper()
	for _, client := range peers.Clients() {
		for _, mode := range modes {
			if !t.Run(client+"/"+string(mode), func(t *testing.T) { test(t, client, mode) }) {
				return
			}
		}
	}
}

// demoSite is a folder for demos. It needs no environment: the demo makes it all.
func demoSite(t *testing.T) *site {
	t.Helper()
	dir := pgtest.Dir(t)
	return &site{dir: t.TempDir(), config: filepath.Join(dir, "postern.toml"), env: []string{"POSTERN_DATABASE_URL=", "POSTERN_SECRET_KEY_FILE="}}
}

// demo is the command line of a demo in the site's folder.
func (s *site) demo(more ...string) []string {
	return append([]string{"demo", "--dir", filepath.Dir(s.config)}, more...)
}

// What `postern demo` prints is enough for every client, through both ports, and
// what it sends comes out.
func TestForeignClients(t *testing.T) {
	t.Parallel()
	s := demoSite(t)
	d := s.start(t, s.demo()...)
	d.await(t, &d.stdout, `Stop with Ctrl-C`)
	settings := printedSettings(t, d.stdout.String())
	mail := mailFile(t, "From: Alice <alice@example.com>\nTo: carol@example.net\nSubject: demo\n\nHello, ünïcode.\n.\n")

	t.Run("example", func(t *testing.T) {
		runPrintedExample(t, s, d.stdout.String())
		d.await(t, &d.stdout, `\nCaptured from <alice@example\.com> to <bob@example\.net>\n`)
	})
	eachClient(t, func(t *testing.T, client string, mode peers.TLS) {
		given := settings[mode]
		given.Message, given.To = mail, []string{"carol@example.net", "dave@example.org"}
		id := send(t, client, given)
		d.await(t, &d.stdout, `\nCaptured from <alice@example\.com> to <carol@example\.net> and 1 more\n.* trace `+id+`\n`)
		h := s.finished(t, id)
		if h.Message.Sender != "alice@example.com" || h.Message.Recipients != 2 || !strings.HasPrefix(h.Message.TLS, "TLS1.3 ") {
			t.Errorf("accepted as %+v", h.Message)
		}
		for _, to := range given.To {
			if got := results(h, to); !slices.Equal(got, []string{"delivered 250 2.0.0 captured"}) {
				t.Errorf("<%s>: %q", to, got)
			}
		}
	})
	if list := s.waiting(t); len(list) != 0 {
		t.Errorf("the queue still holds %+v", list)
	}
	if complaints := d.stderr.String(); complaints != "" {
		t.Errorf("the demo complained:\n%s", complaints)
	}
}

// printedSettings reads what the demo prints for people, for each way in.
func printedSettings(t *testing.T, text string) map[peers.TLS]peers.Settings {
	t.Helper()
	m := regexp.MustCompile(`(?m)^  server +(\S+) \(certificate for .*: (/\S+)\)
  port +(\d+) with STARTTLS, or (\d+) with TLS
  user +(\S+)
  password +(\S+)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("the settings are not where they were:\n%s", text)
	}
	of := func(mode peers.TLS, port string) peers.Settings {
		n, err := strconv.Atoi(port)
		if err != nil {
			t.Fatal(err)
		}
		return peers.Settings{Host: m[1], CAFile: m[2], Port: n, TLS: mode, User: m[5], Password: m[6], From: m[5]}
	}
	return map[peers.TLS]peers.Settings{peers.StartTLS: of(peers.StartTLS, m[3]), peers.Implicit: of(peers.Implicit, m[4])}
}

// runPrintedExample types the example commands of the demo into a shell.
func runPrintedExample(t *testing.T, s *site, text string) {
	_, after, _ := strings.Cut(text, "For example:\n")
	example, _, ok := strings.Cut(after, "Mail goes to")
	if !ok || !strings.Contains(example, "curl ") || !strings.Contains(example, "postern ") {
		t.Fatalf("the example is not where it was:\n%s", text)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	dir := t.TempDir()
	curl := peers.Require(t, "curl").Command(ctx)
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"curl": curl.Path, "postern": self} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	sh := exec.CommandContext(ctx, "sh", "-e", "-c", example)
	sh.Dir = dir
	sh.Env = append(append(curl.Env, "PATH="+dir+":"+os.Getenv("PATH"), "POSTERN_TEST_AS_PROGRAM=1"), s.env...)
	out, err := sh.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("RECIPIENT")) {
		t.Errorf("%v\n%s\n%s", err, example, out)
	}
}

// `make demo ARGS=--once`, over and over, and while another one is up.
func TestDemoOnce(t *testing.T) {
	t.Parallel()
	s := demoSite(t)
	var ids []string
	for range 2 { // the second finds all that the first has made
		out := s.must(t, "", s.demo("--once")...)
		m := queuedAs.FindStringSubmatch(out)
		if m == nil {
			t.Fatalf("no reply with a queue id:\n%s", out)
		}
		ids = append(ids, m[1])
		_, trace, _ := strings.Cut(out, "Its trace ")
		if !regexp.MustCompile(`(?m)^MESSAGE +`+m[1]+`$`).MatchString(trace) ||
			!regexp.MustCompile(`(?m)  bob@example\.net +delivered +capture .* 250 2\.0\.0 captured$`).MatchString(trace) ||
			!strings.Contains(trace, "Nothing is waiting.") {
			t.Errorf("no trace of a delivered message:\n%s", out)
		}
		if strings.Contains(out, "Settings for") {
			t.Errorf("--once prints settings that are of no use:\n%s", out)
		}
	}
	up := s.start(t, s.demo()...)
	up.await(t, &up.stdout, `Stop with Ctrl-C`)

	if _, errs, err := s.postern(t, "", s.demo("--once")...); err == nil || !strings.Contains(errs, "a demo is already running in "+filepath.Dir(s.config)) {
		t.Errorf("a second demo in the same folder: %v\n%s", err, errs)
	}
	other := demoSite(t)
	other.must(t, "", other.demo("--once")...)
	for _, id := range ids { // the history is kept, and the first demo can still be asked
		if h := s.finished(t, id); len(h.Events) != 1 {
			t.Errorf("trace: %+v", h)
		}
	}
}

// awkwardMail has what is easily lost or changed on the way: octets beyond ASCII,
// lines that begin with dots, blanks at the ends of lines, the longest line of RFC
// 5321 section 4.5.3.1.6, an attachment of 2 MB, and a Bcc field that must not go
// out. further is one more line.
func awkwardMail(further string) (sent, wanted string) {
	attachment := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8(sha256.Sum256([]byte("attachment"))).Read(attachment) // cannot fail
	coded := base64.StdEncoding.EncodeToString(attachment)
	var b strings.Builder
	for ; len(coded) > 76; coded = coded[76:] {
		b.WriteString(coded[:76] + "\r\n")
	}
	b.WriteString(coded + "\r\n")

	head := strings.ReplaceAll(`From: Alice <alice@example.com>
To: Bob <bob@example.net>,
	carol@example.org
`, "\n", "\r\n")
	rest := strings.ReplaceAll(`Subject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=
Date: Sat, 01 Aug 2026 10:00:00 +0000
Message-ID: <awkward@example.com>
X-Odd:   blanks   inside,
 a folded line and 8-bit: ä
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=next

--next
Content-Type: text/plain; charset=utf-8
Content-Transfer-Encoding: 8bit

.
..
.a dot in front
Zwölf Boxkämpfer, ¥€$, `+"\xff\xfe and \xe9 in no charset at all"+`
Blanks at the end  	
`+strings.Repeat("0123456789", 99)+`12345678
`+further+`
From the beginning of a line

--next
Content-Type: application/octet-stream
Content-Transfer-Encoding: base64

`, "\n", "\r\n") + b.String() + "--next--\r\n"
	return head + "Bcc: secret@example.net,\r\n\thidden@example.net\r\n" + rest, head + rest
}

// What clients send comes out at the upstream as it was, but for the fields that
// the relay documents.
func TestForeignClientsContent(t *testing.T) {
	t.Parallel()
	sink, err := peers.StartCapture(peers.CaptureConfig{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(sink.Close)
	s := installSite(t)
	s.must(t, "", "upstream", "add", "sink", "--host", "127.0.0.1:"+strconv.Itoa(sink.Port()), "--tls", "none")
	s.must(t, "", "route", "add", "--via", "sink")
	s.serve(t)
	sent, wanted := awkwardMail(strings.Repeat("lönger ", 700)) // than anybody may send
	file := mailFile(t, sent)

	eachClient(t, func(t *testing.T, client string, mode peers.TLS) {
		to := []string{"bob@example.net", "carol@example.org", "secret@example.net"}
		settings := s.settings(mode, file, to...)
		settings.Mechanism = "LOGIN" // the demo gets PLAIN
		id := send(t, client, settings)
		m := arrival(t, sink)
		if m.From != s.account.name || !slices.Equal(m.To, to) {
			t.Errorf("arrived from <%s> to %q", m.From, m.To)
		}
		trace, mail := splitReceived(string(m.Data))
		if !strings.Contains(trace, " by relay.test with ESMTPSA id "+id+" ") || !strings.Contains(trace, "127.0.0.1") {
			t.Errorf("the first field is %q", trace)
		}
		sameText(t, mail, wanted)
		h := s.finished(t, id)
		for _, rcpt := range to {
			if got := results(h, rcpt); len(got) != 1 || !strings.HasPrefix(got[0], "delivered 250 ") {
				t.Errorf("<%s>: %q", rcpt, got)
			}
		}
	})
}

// arrival is the next message at a server.
func arrival(t *testing.T, from interface {
	Next(context.Context) (peers.Message, error)
}) peers.Message {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	m, err := from.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var receivedField = regexp.MustCompile(`^Received: (?:[^\r\n]|\r\n[ \t])*\r\n`)

// splitReceived takes the first field off, when it is Received, and unfolds it.
func splitReceived(mail string) (field, rest string) {
	field = receivedField.FindString(mail)
	return strings.Join(strings.Fields(field), " "), mail[len(field):]
}

// sameText compares two mails. Some clients end a mail by one more empty line.
func sameText(t *testing.T, got, want string) {
	t.Helper()
	got, want = strings.TrimRight(got, "\r\n"), strings.TrimRight(want, "\r\n")
	if got == want {
		return
	}
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	near := func(s string) string { return s[max(0, i-60):min(len(s), i+60)] }
	t.Errorf("the mail changed at octet %d of %d (%d wanted):\n%q\nwant\n%q", i, len(got), len(want), near(got), near(want))
}
