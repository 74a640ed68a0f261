package relay_test

import (
	"errors"
	"testing"
	"time"

	"postern/internal/rig"
)

// backIn is how soon after the database the relay works again on a machine with much to
// do: it is a hundred times as long as on one without, and shorter than the minute that a
// statement or a commit in doubt may take.
const backIn = 50 * time.Second

// TestPostgresAway takes the database away from clients that are connected. They
// hear temporary replies only, and are served soon after it is back.
func TestPostgresAway(t *testing.T) {
	t.Parallel()
	r := rig.New(t, true)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	for _, user := range []string{"stopped@load.test", "killed@load.test", "after-stopped@load.test", "after-killed@load.test"} {
		r.AddUser(user)
	}
	node := r.Node(rig.NodeConfig{Name: "solo"})
	want(t, try(r, node, rig.User)) // also warms up what a later measurement needs
	away := map[string]func(){"stopped": r.StopPostgres, "killed": func() { r.KillPostgres(true) }}
	for _, how := range []string{"stopped", "killed"} {
		outage(t, r, node, how, away[how])
		r.StartPostgres()
		back := time.Now()
		if err := untilServed(r, node, "after-"+how+"@load.test"); err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		waited := time.Since(back)
		t.Logf("%s: served again %.2f s after the database", how, waited.Seconds())
		if waited > backIn {
			t.Errorf("%s: served again %v after the database, want %v at most", how, waited, backIn)
		}
	}
	r.Drain()
	node.Terminate()
	if got := len(sink.Received()); got != 3 {
		t.Errorf("%d messages were delivered, want the 3 that were accepted", got)
	}
}

// outage has one client in each phase of its session when the database goes.
func outage(t *testing.T, r *rig.Rig, node *rig.Node, how string, begin func()) {
	t.Helper()
	connected, atDot, idle := dial(t, r, node), dial(t, r, node), dial(t, r, node)
	for _, c := range []*rig.Client{atDot, idle} {
		want(t, c.Login(rig.User, rig.Password))
	}
	want(t, openData(atDot, rig.User))
	begin()

	wantCode(t, how+": AUTH", connected.Login(how+"@load.test", rig.Password), 454)
	wantCode(t, how+": dot", atDot.Say("dot", 250, "From: "+rig.User+"\r\n\r\ntext\r\n."), 451)
	wantTemporary(t, how+": an idle session", submit(idle, rig.User))
	c := dial(t, r, node)
	wantTemporary(t, how+": a new session", errors.Join(c.Login(rig.User, rig.Password), submit(c, rig.User)))
	for _, c := range []*rig.Client{connected, atDot, idle} { // in step, and not thrown out
		want(t, c.Say("NOOP", 250, "NOOP"))
	}
}

func dial(t *testing.T, r *rig.Rig, node *rig.Node) *rig.Client {
	t.Helper()
	c, err := r.Dial(node, true)
	want(t, err)
	t.Cleanup(c.Close)
	return c
}

func want(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, what string, err error, code int) {
	t.Helper()
	if got := rig.Code(err); got != code {
		t.Errorf("%s: %v, want %d", what, err, code)
	}
}

func wantTemporary(t *testing.T, what string, err error) {
	t.Helper()
	if code := rig.Code(err); code/100 != 4 {
		t.Errorf("%s: %v, want a temporary reply", what, err)
	}
}

// openData begins a message.
func openData(c *rig.Client, from string) error { return openDataTo(c, from, "rcpt@dest.test") }

func openDataTo(c *rig.Client, from, to string) error {
	for _, step := range []struct {
		name, line string
		code       int
	}{
		{"MAIL", "MAIL FROM:<" + from + ">", 250},
		{"RCPT", "RCPT TO:<" + to + ">", 250},
		{"DATA", "DATA", 354},
	} {
		if err := c.Say(step.name, step.code, step.line); err != nil {
			return err
		}
	}
	return nil
}

func submit(c *rig.Client, from string) error {
	if err := openData(c, from); err != nil {
		return err
	}
	return c.Say("dot", 250, "From: "+from+"\r\n\r\ntext\r\n.")
}

// try logs a user in and submits a message.
func try(r *rig.Rig, node *rig.Node, user string) error {
	c, err := r.Dial(node, true)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(user, rig.Password); err != nil {
		return err
	}
	return submit(c, user)
}

// untilServed tries until a message is accepted; all that fails until then must fail
// for now only.
func untilServed(r *rig.Rig, node *rig.Node, user string) error {
	again := time.NewTicker(50 * time.Millisecond)
	defer again.Stop()
	patience := time.After(rig.Patience)
	for {
		err := try(r, node, user)
		if err == nil || rig.Code(err)/100 != 4 {
			return err
		}
		select {
		case <-again.C:
		case <-patience:
			return err
		}
	}
}
