package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"postern/cmd/postern/database"
)

// docs/dkim.md, for a domain whose records are published between two commands.
func TestDKIMPage(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.installed(t)
	g.must(t, "postern user add alice@shop.example")
	g.must(t, "postern route add --via mx --replace")
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := new(database.Connector).Connect(ctx, fmt.Sprintf("postgres:///postern?host=%s&user=postgres", g.socket))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	says := func(command string, words ...string) {
		g.after[command] = func(said string) {
			for _, word := range words {
				if !strings.Contains(said, word) {
					t.Errorf("%s does not say %q:\n%s", command, word, said)
				}
			}
		}
	}
	explain := "postern explain --user alice@shop.example --from alice@shop.example --to bob@example.net"
	g.after["postern dkim add shop.example"] = func(said string) {
		if strings.Count(said, `._domainkey.shop.example. IN TXT ( "v=DKIM1; k=`) != 2 || strings.Count(said, "\nv=DKIM1; k=") != 2 {
			t.Errorf("the records are not there:\n%s", said)
		}
		if _, err := conn.Exec(ctx, `update dkim_key set state = 'active'`); err != nil {
			t.Error(err)
		}
		for _, word := range []string{"-rsa: ", "-ed25519: ", "DMARC"} {
			if said := g.must(t, explain); !strings.Contains(said, word) {
				t.Errorf("%q is not in:\n%s", word, said)
			}
		}
	}
	g.mayFail[explain] = "the user has no credential"
	says(explain, "by mx:", "CHECK", "DMARC")
	g.mayFail["postern dkim list"] = "DNS knows nothing of the domain"
	says("postern dkim list", "shop.example", "-ed25519", "active", "k=rsa")
	says("postern dkim rotate shop.example", "is pending", "._domainkey.shop.example. IN TXT")
	says("postern dkim rotate shop.example --every 180d", "keys of shop.example are rotated after 180 days")
	says("postern dkim retire shop.example", "is retiring: leave its record", "is removed; it has signed nothing")
	says("postern dkim remove shop.example --force", "removed key p20")
	g.follow(t, "../../docs/dkim.md")
	if said := g.must(t, "postern dkim list --json"); said != "[]\n" {
		t.Errorf("left are %s", said)
	}
}
