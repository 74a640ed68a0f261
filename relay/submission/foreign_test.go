package submission

import (
	"net/smtp"
	"strings"
	"testing"

	"github.com/emersion/go-sasl"
	gosmtp "github.com/emersion/go-smtp"
)

// TestForeignNetSMTP submits with the standard library's client over STARTTLS.
func TestForeignNetSMTP(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c, err := smtp.Dial(ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	steps := []func() error{
		func() error { return c.Hello("client.test") },
		func() error { return c.StartTLS(insecure()) },
		func() error { return c.Auth(smtp.PlainAuth("", "alice@example.com", "secret", "127.0.0.1")) },
		func() error { return c.Mail("alice@example.com") },
		func() error { return c.Rcpt("bob@example.net") },
		func() error {
			w, err := c.Data()
			if err != nil {
				return err
			}
			if _, err := w.Write([]byte(smallMessage + ".a dot\r\n")); err != nil {
				return err
			}
			return w.Close()
		},
		c.Quit,
	}
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
	if all := ts.queue.all(); len(all) != 1 || !strings.HasSuffix(all[0].Body, "Hello\r\n.a dot\r\n") {
		t.Errorf("queued: %v", all)
	}
}

// TestForeignGoSMTP submits with go-smtp's client on the TLS port, by both
// mechanisms.
func TestForeignGoSMTP(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for i, mech := range []sasl.Client{
		sasl.NewPlainClient("", "alice@example.com", "secret"),
		sasl.NewLoginClient("alice@example.com", "secret"),
	} {
		c, err := gosmtp.DialTLS(ts.implicit.Addr().String(), insecure())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Auth(mech); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := c.SendMail("alice@example.com", []string{"bob@example.net", "carol@example.net"}, strings.NewReader(smallMessage)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Quit(); err != nil {
			t.Fatal(err)
		}
		if n := ts.queue.len(); n != 2*(i+1) {
			t.Errorf("%d messages are queued", n)
		}
	}
}
