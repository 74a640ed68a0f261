package relay_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// siege is guessing at accounts of two nodes behind a load balancer.
type siege struct {
	r      *rig.Rig
	nodes  []*rig.Node
	names  []string
	putOff atomic.Int64 // guesses that were not judged
}

// begin lets guessers guess, each from its address and as fast as it is answered, until
// the end of the test. It returns when a node puts guesses off.
func (s *siege) begin(t *testing.T, guessers int, from func(i int) string) {
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	t.Cleanup(func() { cancel(); all.Wait() })
	for i := range guessers {
		all.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				s.guess(ctx, s.nodes[n%2], from(i), n)
			}
		})
	}
	await(t, "guesses are put off", func() bool { return s.putOff.Load() > int64(guessers) })
}

// guess guesses in one session until that is ended, and leaves it when ctx ends.
func (s *siege) guess(ctx context.Context, node *rig.Node, from string, n int) {
	c, err := s.r.DialFrom(node, from)
	if err != nil {
		return
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	for i := 0; ; i++ {
		switch err := c.Login(s.names[(n+i)%len(s.names)], fmt.Sprint("guess", n, i)); rig.Code(err) {
		case 535:
		case 454:
			s.putOff.Add(1)
		default:
			return
		}
	}
}

// loggedIn is how long one right login took, and whether it was one.
func (s *siege) loggedIn(t *testing.T, node *rig.Node, from, name, password string) (time.Duration, error) {
	t.Helper()
	c, err := s.r.DialFrom(node, from)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	began := time.Now()
	err = c.Login(name, password)
	return time.Since(began), err
}

// TestM1RightLoginsBesideGuessers: beside guessers at other addresses of the same /24 right
// passwords are let in from an address that the accounts are known from, and beside
// guessers at the very same address generated secrets are; over two nodes and
// behind a load balancer. Nothing is remembered: the nodes have just started. With
// POSTERN_LONG=1 it is 200 logins beside 12 guessers, each within 5 s; without it one
// that is put off, on a machine that is busy, is tried again.
func TestM1RightLoginsBesideGuessers(t *testing.T) {
	t.Parallel()
	const address = "192.0.2.10"
	users, guessers := 2, 4
	long := longtest.Run()
	if long {
		users, guessers = 100, 12
	}
	r := rig.New(t, false)
	s := &siege{r: r, nodes: []*rig.Node{r.Node(rig.NodeConfig{Name: "a", Extra: rig.Proxied}), r.Node(rig.NodeConfig{Name: "b", Extra: rig.Proxied})}}
	secrets := make([]string, users)
	for i := range users {
		name := fmt.Sprintf("user%d@%s", i, rig.Domain)
		r.AddUser(name)
		var added struct{ Secret string }
		if err := json.Unmarshal([]byte(r.Postern("", "credential", "add", name, "--label", "app", "--generate", "--json")), &added); err != nil {
			t.Fatal(err)
		}
		s.names, secrets[i] = append(s.names, name), added.Secret
		if _, err := s.loggedIn(t, s.nodes[0], address, name, rig.Password); err != nil {
			t.Fatal(err)
		}
	}
	restart := func() {
		for _, node := range s.nodes {
			node.Terminate()
			node.Start()
			node.Ready()
		}
	}
	await(t, "all are known from "+address, func() bool { // a node has a second for it when it ends
		return count(t, r, `select count(*) from known_network where network = '192.0.2.10/32'`) == users
	})
	restart()
	all := func(t *testing.T, from string, password func(i int) string) {
		var times []time.Duration
		for i, name := range s.names {
			for _, node := range s.nodes {
				took, err := s.loggedIn(t, node, from, name, password(i))
				for end := time.Now().Add(rig.Patience); !long && rig.Code(err) == 454 && time.Now().Before(end); {
					took, err = s.loggedIn(t, node, from, name, password(i))
				}
				if times = append(times, took); err != nil || long && took > 5*time.Second {
					t.Errorf("user %d at node %s: %v after %s", i, node.Name, err, took)
				}
			}
		}
		slices.Sort(times)
		t.Logf("%d logins: median %s, longest %s; %d guesses were put off", len(times), times[len(times)/2], times[len(times)-1], s.putOff.Load())
	}
	t.Run("neighbours", func(t *testing.T) {
		s.begin(t, guessers, func(i int) string { return fmt.Sprintf("192.0.2.%d", 101+i) })
		all(t, address, func(int) string { return rig.Password })
	})
	restart()
	t.Run("same address", func(t *testing.T) {
		s.putOff.Store(0)
		s.begin(t, guessers, func(int) string { return address })
		all(t, address, func(i int) string { return secrets[i] })
	})
}
