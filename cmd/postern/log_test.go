package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"
)

// TestServeLogsInOneFormat provokes what the server says about no message, which
// must come in the configured format like all else.
func TestServeLogsInOneFormat(t *testing.T) {
	t.Parallel()
	site := installSite(t)
	d := site.serve(t)
	conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", site.starttls))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "EHLO a.test\r\nSTARTTLS\r\nEHLO b.test\r\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadAll(conn); err != nil {
		t.Fatal(err)
	}
	d.await(t, &d.stderr, "octets behind STARTTLS")
	for line := range strings.Lines(d.stderr.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("no JSON: %s", line)
		}
	}
}
