package main

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/pgtest"
)

// until waits for something to become true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(patience); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not happen", what)
		}
	}
}

// webhookShell is a shell whose configuration allows endpoints of this machine.
func webhookShell(t *testing.T) *adminShell {
	t.Helper()
	s := shellOf(t, pgtest.New(t))
	s.write(t, "postern.toml", "hostname = \"relay.example.com\"\n[webhooks]\nallow = [\"127.0.0.0/8\"]\n")
	s.must(t, "postern user add shop@example.com")
	return s
}

// docs/webhooks.md: its commands, in their order, with an endpoint that takes what it is sent.
func TestWebhooksPage(t *testing.T) {
	t.Parallel()
	s := webhookShell(t)
	var mu sync.Mutex
	var sample []byte
	header := http.Header{}
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		sample, header = body, r.Header
		mu.Unlock()
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(endpoint.Close)
	said := map[string]string{}
	for _, b := range blocksOf(t, "../../docs/webhooks.md") {
		if b.language != "sh" {
			continue
		}
		for line := range strings.Lines(b.text) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "postern webhook remove") {
				mu.Lock()
				s.write(t, "body.json", string(sample))
				s.env = append(s.env, "id="+header.Get("webhook-id"), "timestamp="+header.Get("webhook-timestamp"), "signature="+header.Get("webhook-signature"))
				mu.Unlock()
				said["verify"] = s.must(t, verifyLine(t))
			}
			if !strings.HasPrefix(line, "postern webhook verify") {
				said[line] = s.must(t, strings.Replace(line, "https://shop.example.com", endpoint.URL, 1))
			}
		}
	}
	for line, want := range map[string]string{
		"postern webhook add https://ops.example.com/hook --all --name ops": "\nsecret: whsec_",
		"postern webhook list":        "shop  active  shop@example.com",
		"postern webhook show shop":   "shop is active: " + endpoint.URL + "/mail-events",
		"postern webhook test shop":   "the event was taken: 204",
		"postern webhook rotate shop": "the former secret signs too until 20",
		"postern webhook replay shop --since 4h --until 1h --kind failed --dry-run": "would be sent again: 0",
		"postern webhook pause shop":  "webhook shop is paused",
		"postern webhook remove shop": "webhook shop is removed",
		"verify":                      "the signature is right",
	} {
		if !strings.Contains(strings.Join(strings.Fields(said[line]), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("%s: %q, want %q", line, said[line], want)
		}
	}
}

// verifyLine is the page's command that verifies.
func verifyLine(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/webhooks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, line, found := strings.Cut(string(text), "  postern webhook verify ")
	if !found {
		t.Fatal("the page verifies nothing")
	}
	line, _, _ = strings.Cut(line, "\n")
	return "postern webhook verify " + line
}

// The receivers of docs/webhooks.md take signed events, each once, and nothing else.
func TestWebhookReceivers(t *testing.T) {
	t.Parallel()
	for _, b := range blocksOf(t, "../../docs/webhooks.md") {
		if !strings.HasPrefix(b.name, "receiver.") {
			continue
		}
		t.Run(b.language, func(t *testing.T) {
			t.Parallel()
			s := webhookShell(t)
			s.write(t, b.name, b.text)
			var command []string
			switch b.language {
			case "python":
				command = []string{"python3", b.name}
			case "js":
				command = []string{"node", b.name}
			case "go":
				build := exec.CommandContext(t.Context(), "go", "build", "-o", "receiver", b.name)
				build.Dir = s.dir
				if out, err := build.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				command = []string{filepath.Join(s.dir, "receiver")}
			default:
				t.Fatalf("a receiver in %s", b.language)
			}
			port := unusedPort(t)
			secret := secretIn(s.must(t, fmt.Sprintf("postern webhook add http://127.0.0.1:%d/ --all --name here", port)))
			var out, complaint watched
			cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
			cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, &out, &complaint
			cmd.Env = append(os.Environ(), "WEBHOOK_SECRET="+secret, fmt.Sprintf("PORT=%d", port))
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
			until(t, "an event is taken", func() bool {
				return s.command(t, "postern webhook test here").Run() == nil
			})
			head, body, _ := strings.Cut(s.must(t, "postern webhook test here --print"), "\n\n")
			post := func(body string) int {
				r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fmt.Sprintf("http://127.0.0.1:%d/", port), strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				for _, line := range strings.Split(head, "\n")[2:] {
					name, value, _ := strings.Cut(line, ": ")
					r.Header.Set(name, value)
				}
				response, err := http.DefaultClient.Do(r)
				if err != nil {
					text, _ := complaint.look()
					t.Fatalf("%v\n%s", err, text)
				}
				response.Body.Close()
				return response.StatusCode
			}
			for range 2 {
				if code := post(body); code != http.StatusNoContent {
					t.Errorf("an event is answered with %d", code)
				}
			}
			if code := post(body + " "); code != http.StatusUnauthorized {
				t.Errorf("a changed event is answered with %d", code)
			}
			text, _ := out.look()
			if n := strings.Count(text, "webhook.test "); n != 2 {
				t.Errorf("%d events were handled: %s", n, text)
			}
		})
	}
}

// secretIn is the secret in what a command says.
func secretIn(said string) string {
	for line := range strings.Lines(said) {
		if secret, found := strings.CutPrefix(line, "secret: "); found {
			return strings.TrimSpace(secret)
		}
	}
	return ""
}
