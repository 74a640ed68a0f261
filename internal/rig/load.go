package rig

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Load is many clients at work.
type Load struct {
	Rig    *Rig
	Ledger *Ledger
	Nodes  []*Node // each client has one of them
	Name   string  // of the account; "": User
	Conns  int     // concurrent clients
	Each   int     // messages of each client; 0: until the load is stopped
	Pace   time.Duration
	Seed   uint64
	Shape  func(random *rand.Rand) Shape

	stop context.CancelFunc
	done sync.WaitGroup
}

// Start lets the clients begin.
func (l *Load) Start() {
	ctx, stop := context.WithCancel(context.Background())
	l.stop = stop
	for i := range l.Conns {
		l.done.Go(func() {
			c := &worker{load: l, number: i, random: rand.New(rand.NewPCG(l.Seed, uint64(i))), ctx: ctx}
			c.work()
		})
	}
	l.Rig.t.Cleanup(l.Stop)
}

// Stop lets the clients finish the message that they are at.
func (l *Load) Stop() {
	l.stop()
	l.done.Wait()
}

// Wait returns when each client has submitted its messages.
func (l *Load) Wait() { l.done.Wait() }

// worker is one client, over one connection after the other.
type worker struct {
	load   *Load
	number int
	random *rand.Rand
	ctx    context.Context
	sent   int
}

// work submits until the load is stopped or all is sent. A client that failed
// comes back after a moment, as clients do.
func (w *worker) work() {
	for w.ctx.Err() == nil && !w.finished() {
		if err := w.session(); err != nil {
			w.load.Ledger.trouble(err)
			w.pause(50 * time.Millisecond)
		}
	}
}

func (w *worker) finished() bool { return w.load.Each > 0 && w.sent >= w.load.Each }

// pause is the pace of the load: nothing else waits by time.
func (w *worker) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-w.ctx.Done():
	case <-timer.C:
	}
}

// session submits a few messages over one connection.
func (w *worker) session() error {
	node := w.load.Nodes[w.number%len(w.load.Nodes)]
	c, err := w.load.Rig.Dial(node, w.random.IntN(2) == 0)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.Login(cmp.Or(w.load.Name, User), Password); err != nil {
		return err
	}
	for n := 1 + w.random.IntN(12); n > 0 && w.ctx.Err() == nil && !w.finished(); n-- {
		if err := w.submit(c, node); err != nil {
			return err
		}
		w.pause(w.load.Pace)
	}
	return c.Say("QUIT", 221, "QUIT")
}

// submit sends one message and writes down what became of it.
func (w *worker) submit(c *Client, node *Node) error {
	l := w.load
	shape := l.Shape(w.random)
	s := Sent{
		ID:   "m" + strconv.FormatUint(l.Seed, 36) + "x" + strconv.FormatInt(l.Rig.sent.Add(1), 10) + "x",
		Node: node.Name, From: shape.From, Date: w.random.IntN(4) > 0, Fate: NotSent,
	}
	message := text(s.ID, shape, s.Date, w.random)
	s.Sum = sum(message)
	err := c.submit(&s, shape, stuffed(message), w.random.IntN(2) == 0)
	if err != nil {
		s.Reply = err.Error()
	}
	if s.Fate != NotSent || len(s.To) > 0 {
		w.sent++
		l.Ledger.add(s)
	}
	return err
}

// submit runs one transaction and fills in what the client knows at its end.
func (c *Client) submit(s *Sent, shape Shape, wire string, pipelined bool) error {
	if err := c.envelope(s, shape, pipelined); err != nil {
		return err
	}
	// The last line goes alone, so that no other write can have ended the data.
	if err := c.Write(wire[:len(wire)-len(".\r\n")]); err != nil {
		return fmt.Errorf("data: %w", err)
	}
	s.Fate, s.DotAt = Unknown, time.Now()
	if err := c.Write(".\r\n"); err != nil {
		return fmt.Errorf("dot: %w", err)
	}
	code, text, err := c.Reply()
	if err != nil {
		return fmt.Errorf("dot: %w", err)
	}
	s.Reply = strconv.Itoa(code) + " " + text
	if code/100 == 2 {
		s.Fate = Accepted
		return nil
	}
	s.Fate = Refused
	return &stepError{"dot", code, text}
}

// envelope sends MAIL, RCPT and DATA, and reads their replies one by one or at the end.
func (c *Client) envelope(s *Sent, shape Shape, pipelined bool) error {
	steps := []step{{"MAIL", "MAIL FROM:<" + shape.From + ">", 250}}
	for _, to := range shape.To {
		steps = append(steps, step{"RCPT", "RCPT TO:<" + to + ">", 250})
	}
	steps = append(steps, step{"DATA", "DATA", 354})
	if pipelined { // RFC 2920
		var group strings.Builder
		for _, one := range steps {
			group.WriteString(one.line + "\r\n")
		}
		if err := c.Write(group.String()); err != nil {
			return fmt.Errorf("envelope: %w", err)
		}
	}
	var failed error
	for i, one := range steps {
		var err error
		if pipelined {
			err = c.Expect(one.name, one.code)
		} else {
			err = c.Say(one.name, one.code, one.line)
		}
		var reply *stepError
		switch {
		case err != nil && (!pipelined || !errors.As(err, &reply)):
			return err
		case err != nil:
			failed = cmp.Or(failed, err)
		case one.name == "RCPT":
			s.To = append(s.To, shape.To[i-1])
		}
	}
	return failed
}

// step is one command and the reply that it needs.
type step struct {
	name, line string
	code       int
}
