package peers

import (
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"testing"
)

//go:embed verify_webhook.cjs
var webhookScript string

// VerifyWebhook has the npm package standardwebhooks verify a request, and returns its complaint, nil if
// it has none. A machine without npm does not have the package: the test is skipped there.
func VerifyWebhook(t testing.TB, secret string, headers map[string]string, body string) error {
	t.Helper()
	c := requireCache(t)
	must(t, c.hasModule("standardwebhooks"))
	p, err := c.Program("node")
	if err != nil {
		t.Fatal(err)
	}
	given, err := json.Marshal(struct {
		Secret, Body string
		Headers      map[string]string
	}{secret, body, headers})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), verifyTimeout)
	defer cancel()
	cmd := p.Command(ctx, "-e", webhookScript)
	cmd.Stdin = bytes.NewReader(given)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}
