package message

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Who resent a message last is who stands in the first set of Resent fields (RFC 5322
// section 3.6.6), and nobody where readers could differ.
func TestRedirector(t *testing.T) {
	t.Parallel()
	const from = "From: x@victim\n"
	for name, tt := range map[string]struct {
		in   string
		want string // addresses, "" for nobody
	}{
		"not resent":                      {from, ""},
		"one set":                         {"Resent-From: a@own\nResent-Date: d\nResent-To: t@x\n" + from, "a@own"},
		"behind other fields":             {"Received: r\n" + from + "Resent-Date: d\nRESENT-from: a@own\n", "a@own"},
		"with a sender":                   {"Resent-From: a@own\nResent-Sender: s@own\n" + from, "a@own s@own"},
		"sender first":                    {"Resent-Sender: s@own\nResent-From: a@own\n" + from, "a@own s@own"},
		"two with a sender":               {"Resent-From: a@own, b@own\nResent-Sender: s@own\n" + from, "a@own b@own s@own"},
		"two without a sender":            {"Resent-From: a@own, b@own\n" + from, ""},
		"removed fields between":          {"Resent-From: a@own\nResent-Bcc: y@z\nResent-Sender: s@own\n" + from, "a@own s@own"},
		"a removed field before":          {"Resent-Bcc: y@z\nSubject: s\nResent-From: a@own\n" + from, "a@own"},
		"a sender behind a removed field": {"Resent-From: a@own\nReturn-Path: <r@z>\nResent-Sender: c@victim\nResent-From: b@victim\n" + from, "a@own c@victim"},
		"a sender behind Bcc":             {"Resent-From: a@own\nBcc: y@z,\n x@z\nResent-Sender: c@victim\nResent-From: b@victim\n" + from, "a@own c@victim"},
		"folded fields between":           {"Resent-From: a@own\nResent-To: y@z,\n x@z\nResent-Sender:\n s@own\n" + from, "a@own s@own"},
		"no Resent-From":                  {"Resent-Date: d\nResent-Sender: a@own\n" + from, ""},
		"Resent-From only further down":   {"Resent-Date: d\n" + from + "Resent-From: a@own\n", ""},
		"two sets, together":              {"Resent-From: a@own\nResent-Date: d\nResent-From: b@victim\nResent-Date: d\n" + from, "a@own"},
		"two sets, apart":                 {"Resent-From: a@own\nReceived: r\nResent-From: b@victim\nResent-Sender: c@victim\n" + from, "a@own"},
		"two sets, the second's sender":   {"Resent-From: a@own\nReceived: r\nResent-Sender: c@victim\nResent-From: b@victim\n" + from, "a@own"},
		"a list's set, spread":            {"Resent-From: a@own\nResent-Date: d\nResent-From: l@list\nX-Loop: l\nResent-Sender: r@list\nResent-Date: d\n" + from, "a@own"},
		"a sender that follows nobody":    {"Resent-From: a@own\n" + from + "Resent-Sender: c@victim\n", ""},
		"a sender before the older":       {"Resent-From: a@own\n" + from + "Resent-Sender: c@victim\nSubject: s\nResent-From: b@victim\n", ""},
		"two senders in the first":        {"Resent-From: a@own\nResent-Sender: s@own\nResent-Sender: c@victim\n" + from, ""},
		"the older one's sender, no line": {"Resent-From: a@own\nResent-Sender: c@victim\nResent-From: b@victim\n" + from, "a@own c@victim"},
		"not quite Resent":                {"Resent: a@own\nResentFrom: a@own\nX-Resent-From: a@own\n" + from, ""},
		"a group":                         {"Resent-From: g: a@own, b@own;\nResent-Sender: a@own\n" + from, "a@own b@own a@own"},
		"in the body":                     {from + "\nResent-From: a@own\n", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := Prepare(strings.NewReader(lines(tt.in)), options)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(at(tt.want), p.Redirector); diff != "" {
				t.Error(diff)
			}
		})
	}
}
