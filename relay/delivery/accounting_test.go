package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// TestAccounting sends random messages to servers that misbehave at random, ends the
// engine at a random moment and checks that every recipient was settled or released
// exactly once, every body let go, and that no server holds what was not counted.
func TestAccounting(t *testing.T) {
	t.Parallel()
	for seed := range uint64(40) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			newScene(t, seed).play(t)
		})
	}
}

// scene is one random run.
type scene struct {
	random  *rand.Rand
	servers []*smtptest.Server
	routes  routes
	q       *fakeQueue
	sent    []*queue.Delivery
	rows    int
}

func newScene(t *testing.T, seed uint64) *scene {
	s := &scene{random: rand.New(rand.NewPCG(seed, 0)), q: newFakeQueue()}
	s.routes.to = map[string]*upstream.Account{}
	for i := range 3 {
		server := smtptest.Start(t, smtptest.Config{})
		misbehave(server, seed+uint64(i), i)
		s.servers = append(s.servers, server)
		up := upstreamAt(server)
		up.Name = fmt.Sprintf("up%d", i)
		up.MaxConnections = 1 + s.random.IntN(4)
		s.routes.to[fmt.Sprintf("d%d.test", i)] = up
	}
	s.routes.def = s.routes.to["d0.test"]
	s.q.gate = func(d *queue.Delivery, _ []int) error {
		if d.Message.ID[15]%16 == 0 {
			return errors.New("the epoch is over")
		}
		return nil
	}
	return s
}

// misbehave makes server i of a scene do something odd now and then; server 0 is
// well-behaved.
func misbehave(server *smtptest.Server, seed uint64, i int) {
	if i == 0 {
		return
	}
	odd := []smtptest.Action{
		smtptest.Reply("421 4.3.2 closing"), smtptest.Reply("450 4.2.0 later"), smtptest.Reply("550 5.1.1 no"),
		smtptest.Reply("999 what"), smtptest.Then(smtptest.Raw("250 ok"), smtptest.Close()), smtptest.Close(), smtptest.Reset(), smtptest.Stall(),
		smtptest.Reply("250 2.0.0 one", "250 2.0.0 two"), smtptest.Then(smtptest.Normal(), smtptest.Close()),
		smtptest.Then(smtptest.Keep(), smtptest.Close()), smtptest.Reply("452 4.5.3 too many recipients"),
	}
	phases := []smtptest.Phase{
		smtptest.PhaseConnect, smtptest.PhaseBanner, smtptest.PhaseHello, smtptest.PhaseMail, smtptest.PhaseRcpt,
		smtptest.PhaseData, smtptest.PhaseDot, smtptest.PhaseReset, smtptest.PhaseQuit,
	}
	for p, phase := range phases {
		server.On(phase, func(s smtptest.Session) smtptest.Action {
			// The choice depends on what can be seen, so that hooks need no lock.
			r := rand.New(rand.NewPCG(seed, uint64(p)<<32|uint64(s.Conn)<<16|uint64(s.Commands)))
			if r.IntN(8) > 0 {
				return smtptest.Action{}
			}
			return odd[r.IntN(len(odd))]
		})
	}
}

func (s *scene) play(t *testing.T) {
	e := newEngine(s.q, Config{
		Connect:        connect.Config{Timeouts: smtp.Timeouts{Greeting: 50 * time.Millisecond, Command: 50 * time.Millisecond, DataInit: 50 * time.Millisecond, DataBlock: 50 * time.Millisecond, DataDone: 50 * time.Millisecond, Quit: 50 * time.Millisecond}},
		Routes:         s.routes,
		Messages:       60,
		PerTransaction: 3,
		PerConnection:  5,
		Backoff:        []time.Duration{time.Millisecond},
	})
	e.Start()
	for range 20 + s.random.IntN(60) {
		d := s.message(t)
		if s.random.IntN(4) == 0 {
			s.q.offer(d)
		} else {
			e.Take(d)
		}
	}
	s.q.wait(t, "some of it", func() bool { return s.q.ended >= s.random.IntN(s.rows+1) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.random.IntN(100))*time.Millisecond)
	defer cancel()
	if err := e.Shutdown(ctx); err != nil && !errors.Is(err, ErrCut) {
		t.Error(err)
	}
	s.check(t, e)
}

func (s *scene) message(t *testing.T) *queue.Delivery {
	var rcpts []string
	for i := range 1 + s.random.IntN(8) {
		rcpts = append(rcpts, fmt.Sprintf("r%d@d%d.test", i, s.random.IntN(3)))
	}
	d := message(t, rcpts...)
	d.Message.Sender = address(t, d.Message.ID.String()+"@sender.test") // for check to know it again
	s.sent = append(s.sent, d)
	s.rows += len(rcpts)
	return d
}

func (s *scene) check(t *testing.T, e *Engine) {
	unclaimed := map[queue.ID]bool{}
	for _, d := range s.q.due {
		unclaimed[d.Message.ID] = true
	}
	kept := s.kept()
	for _, d := range s.sent {
		if unclaimed[d.Message.ID] {
			continue
		}
		dropped(t, d)
		for _, r := range d.Recipients {
			key := rowKey{d.Message.ID, r.N}
			outcomes, released := s.q.outcomes[key], s.q.released[key]
			if len(outcomes)+len(released) != 1 {
				t.Errorf("%v: %d outcomes and %d releases, want one of them", key, len(outcomes), len(released))
				continue
			}
			copies := kept[d.Message.Sender.String()+" "+r.Address.String()]
			if len(released) == 1 {
				if copies > 0 {
					t.Errorf("%v was released and a server has it", key)
				}
				continue
			}
			checkOutcome(t, outcomes[0], copies)
		}
	}
	if held := e.Stats(); held.Messages != 0 || held.Memory != 0 || held.Panics != 0 {
		t.Errorf("left: %+v", held)
	}
}

func checkOutcome(t *testing.T, o queue.Outcome, copies int) {
	switch {
	case o.Result == queue.Delivered && copies != 1:
		t.Errorf("delivered, and servers have %d copies: %+v", copies, o)
	case o.Result != queue.Delivered && !o.Unknown && copies > 0:
		t.Errorf("not delivered, and servers have %d copies: %+v", copies, o)
	case (o.Result == queue.Deferred) != (o.RetryIn > 0):
		t.Errorf("%s with a retry in %v", o.Result, o.RetryIn)
	}
}

// kept counts the copies that servers hold, by message and recipient.
func (s *scene) kept() map[string]int {
	copies := map[string]int{}
	for _, server := range s.servers {
		for _, m := range server.Messages() {
			for _, to := range m.To() {
				copies[m.From()+" "+to]++
			}
		}
	}
	return copies
}
