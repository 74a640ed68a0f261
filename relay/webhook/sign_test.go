package webhook

import (
	"encoding/base64"
	"net/http"
	"strings"
	"testing"
	"time"

	standard "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"postern/internal/peers"
)

// The public library takes what is signed here, with each secret of a rotation, and the reverse.
func TestSignatures(t *testing.T) {
	t.Parallel()
	now := time.Now()
	body := []byte(`{"kind":"delivered"}`)
	secrets := []Secret{newSecret(), newSecret()}
	headers := http.Header{}
	for name, value := range Headers(secrets, "msg_1", now, body) {
		headers.Set(name, value)
	}
	for _, s := range secrets {
		theirs, err := standard.NewWebhook(s.String())
		must(t, err)
		must(t, theirs.Verify(body, headers))
		signature, err := theirs.Sign("msg_1", now, body)
		must(t, err)
		if signature != s.sign("msg_1", now, body) {
			t.Errorf("they sign %s", signature)
		}
	}
	other, err := standard.NewWebhook(newSecret().String())
	must(t, err)
	if other.Verify(body, headers) == nil {
		t.Error("another secret verifies")
	}
}

// The npm package takes it as well, and not with another secret or body.
func TestSignaturesByNPM(t *testing.T) {
	t.Parallel()
	const body = `{"kind":"delivered","reply":"gr\u00fc\u00dfe"}`
	secrets := []Secret{newSecret(), newSecret()}
	headers := Headers(secrets, "msg_1", time.Now(), []byte(body))
	for _, s := range secrets {
		must(t, peers.VerifyWebhook(t, s.String(), headers, body))
	}
	for what, err := range map[string]error{
		"another secret": peers.VerifyWebhook(t, newSecret().String(), headers, body),
		"another body":   peers.VerifyWebhook(t, secrets[0].String(), headers, body+" "),
	} {
		if err == nil || !strings.Contains(err.Error(), "WebhookVerificationError") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// Verify says what is wrong.
func TestVerify(t *testing.T) {
	t.Parallel()
	now := time.Now()
	secret := newSecret()
	for _, c := range []struct {
		name   string
		change func(h map[string]string, body *string)
		want   string
	}{
		{"right", func(map[string]string, *string) {}, ""},
		{"one of several", func(h map[string]string, _ *string) { h[HeaderSignature] = "v1,x v2,y " + h[HeaderSignature] }, ""},
		{"no id", func(h map[string]string, _ *string) { delete(h, HeaderID) }, "is missing"},
		{"no time", func(h map[string]string, _ *string) { h[HeaderTimestamp] = "now" }, "not a number"},
		{"no signature", func(h map[string]string, _ *string) { delete(h, HeaderSignature) }, "no signature"},
		{"another body", func(_ map[string]string, body *string) { *body += " " }, "no signature"},
		{"another id", func(h map[string]string, _ *string) { h[HeaderID] = "x" }, "no signature"},
	} {
		body := "{}"
		h := Headers([]Secret{secret}, "id", now, []byte(body))
		c.change(h, &body)
		err := Verify([]Secret{secret}, func(name string) string { return h[name] }, []byte(body), now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	h := Headers([]Secret{secret}, "id", now, nil)
	for _, off := range []time.Duration{-tolerance - 2*time.Second, tolerance + 2*time.Second} {
		if err := Verify([]Secret{secret}, func(name string) string { return h[name] }, nil, now.Add(off)); err == nil || !strings.Contains(err.Error(), "is right, but") {
			t.Errorf("%s later: %v", off, err)
		}
	}
	if octets, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(secret.String(), "whsec_")); err != nil || len(octets) != 32 {
		t.Errorf("%s: %v", secret, err)
	}
}
