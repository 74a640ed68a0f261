package rig

import (
	"strings"
	"testing"
	"time"
)

const (
	someID  = "m1x1x"
	otherID = "m1x2x"
	alice   = "alice@load.test"
	bob     = "bob@dest.test"
	carol   = "carol@dest.test"
	queueID = "019aa7de-0000-7000-8000-000000000001"
)

const trace = "Received: from client.test ([127.0.0.1])\r\n\tby a.test with ESMTPSA id " + queueID +
	"\r\n\t(TLS1.3 TLS_AES_128_GCM_SHA256);\r\n\tMon, 2 Nov 2026 10:00:00 +0000\r\n"

// faultless is an account in which nothing is wrong: one message to two recipients,
// of whom one was refused and is told of in a notice.
func faultless() Evidence {
	return Evidence{
		Sent: []Sent{{ID: someID, Node: "a", From: alice, To: []string{bob, carol}, Sum: sum("text"), Date: true,
			DotAt: time.Now(), Fate: Accepted, Reply: "250 2.0.0 Ok: queued as " + queueID}},
		Received: []Received{
			{Serial: "s0s", Hello: "a.test", From: alice, To: []string{bob}, ID: someID, Head: trace, Sum: sum("text"), Replied: true},
			{Serial: "s1s", Hello: "a.test", To: []string{alice}, Replied: true,
				Bounce: &Bounce{MessageID: "<n1@a.test>", About: someID, Failed: []string{carol}, Valid: true}},
		},
		History: []Event{
			{MessageID: messageID(someID), Recipient: bob, Epoch: 1, Result: "delivered", Node: "a", ReplyText: "taken as s0s"},
			{MessageID: messageID(someID), Recipient: carol, Epoch: 1, Result: "failed", Node: "a"},
			{MessageID: "<n1@a.test>", Recipient: alice, Epoch: 1, Result: "delivered", Node: "a", ReplyText: "taken as s1s"},
		},
	}
}

func TestCheckFindsNothingWrong(t *testing.T) {
	t.Parallel()
	problems, tally := Check(faultless())
	if len(problems) > 0 {
		t.Errorf("problems in an account without any: %q", problems)
	}
	if want := (Tally{Accepted: 1, Copies: 1, Bounces: 1}); tally != want {
		t.Errorf("tally %+v, want %+v", tally, want)
	}
}

// TestCheckFindsEachBreach proves the checker: each case is the faultless account
// with one thing done to it.
func TestCheckFindsEachBreach(t *testing.T) {
	t.Parallel()
	again := func(e *Evidence, i int) { e.Received = append(e.Received, e.Received[i]) }
	unknown := func(e *Evidence, id, rcpt string) {
		e.History = append(e.History, Event{MessageID: id, Recipient: rcpt, Result: "unknown", OutcomeUnknown: true, PossibleDuplicate: true})
	}
	tests := []struct {
		name string
		do   func(e *Evidence)
		want string // the breach, "" for none
	}{
		{"lost", func(e *Evidence) { e.Received = e.Received[1:] }, "I1: " + someID + ": lost for " + bob},
		{"its notice lost", func(e *Evidence) { e.Received = e.Received[:1] }, "I1: " + someID + ": lost for " + carol},
		{"lost, but nobody was told that it was accepted", func(e *Evidence) { e.Sent[0].Fate = Unknown; e.Received = nil }, ""},
		{"refused and delivered", func(e *Evidence) { e.Sent[0].Fate = Refused; e.Received = e.Received[:1] }, "I2: "},
		{"refused, delivered, and recorded as void", func(e *Evidence) {
			e.Sent[0].Fate, e.Received = Refused, e.Received[:1]
			e.History = append(e.History, Event{MessageID: messageID(someID), Recipient: bob, Result: "void"})
		}, ""},
		{"delivered without its dot", func(e *Evidence) { e.Sent[0].Fate = NotSent; e.Received = e.Received[:1] }, "I2: "},
		{"doubled", func(e *Evidence) { again(e, 0) }, "I3: " + someID + ": 2 copies for " + bob},
		{"doubled and recorded", func(e *Evidence) { again(e, 0); unknown(e, messageID(someID), bob) }, ""},
		{"tripled and recorded once", func(e *Evidence) { again(e, 0); again(e, 0); unknown(e, messageID(someID), bob) }, "I3: " + someID + ": 3 copies"},
		{"doubled and recorded for another", func(e *Evidence) { again(e, 0); unknown(e, messageID(someID), carol) }, "I3: "},
		{"doubled and not flagged", func(e *Evidence) {
			again(e, 0)
			unknown(e, messageID(someID), bob)
			e.History[len(e.History)-1].PossibleDuplicate = false
		}, "I3: "},
		{"doubled notice", func(e *Evidence) { again(e, 1) }, "I3: <n1@a.test>: 2 copies"},
		{"doubled notice, recorded", func(e *Evidence) { again(e, 1); unknown(e, "<n1@a.test>", alice) }, ""},
		{"told twice", func(e *Evidence) {
			again(e, 1)
			b := *e.Received[2].Bounce
			b.MessageID = "<n2@a.test>"
			e.Received[2].Bounce = &b
		}, "I11: " + someID + ": 2 notices about " + carol},
		{"told without need", func(e *Evidence) { e.Received[1].Bounce.Failed = []string{carol, bob} }, "I5: " + someID + ": both delivered to " + bob},
		{"told of a stranger", func(e *Evidence) { e.Received[1].Bounce.Failed = []string{carol, "x@y"} }, "I11: " + someID + ": a notice about x@y"},
		{"told to another", func(e *Evidence) { e.Received[1].To = []string{bob} }, "I11: "},
		{"a notice that is none", func(e *Evidence) { again(e, 1); e.Received[2].Bounce = &Bounce{} }, "I11: "},
		{"altered", func(e *Evidence) { e.Received[0].Sum[0]++ }, "I6: " + someID + ": its text was altered"},
		{"text in front", func(e *Evidence) { e.Received[0].Head += "Bcc: x\r\n" }, "I6: " + someID + ": foreign text in front"},
		{"a second Date", func(e *Evidence) { e.Received[0].Head += "Date: now\r\n" }, "I6: " + someID + ": Date is wrong"},
		{"no Date", func(e *Evidence) { e.Sent[0].Date = false }, "I6: " + someID + ": Date is wrong"},
		{"under another queue id", func(e *Evidence) { e.Sent[0].Reply = "250 Ok: queued as x" }, "I6: " + someID + ": came as " + queueID},
		{"nobody's", func(e *Evidence) { again(e, 0); e.Received[2].ID = otherID }, "I6: the sink got a message that nobody sent"},
		{"from another sender", func(e *Evidence) { e.Received[0].From = bob }, "I7: "},
		{"to a stranger", func(e *Evidence) { e.Received[0].To = []string{bob, "x@y"} }, "I7: "},
		{"twice to one in one transaction", func(e *Evidence) {
			e.Received[0].To = []string{bob, bob}
			unknown(e, messageID(someID), bob)
		}, "I7: "},
		{"a hidden recipient told", func(e *Evidence) {
			e.Received[0].Head = strings.Replace(trace, ";", "\r\n\tfor <"+bob+">;", 1)
		}, "I7: " + someID + ": the trace field tells of " + bob},
		{"rows left", func(e *Evidence) { e.Rows = 1 }, "I10: "},
		{"bodies left", func(e *Evidence) { e.Bodies = 1 }, "I10: "},
		{"told 535", func(e *Evidence) { e.Permanent = []string{"AUTH: 535 no"} }, "I13: "},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			e := faultless()
			test.do(&e)
			problems, _ := Check(e)
			switch {
			case test.want == "" && len(problems) > 0:
				t.Errorf("problems %q, want none", problems)
			case test.want != "" && (len(problems) != 1 || !strings.HasPrefix(problems[0], test.want)):
				t.Errorf("problems %q, want one that begins with %q", problems, test.want)
			}
		})
	}
}
