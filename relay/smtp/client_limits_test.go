package smtp

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
)

func TestP06ParseLimits(t *testing.T) {
	t.Parallel()
	for params, want := range map[string]limits{
		"":                               {},
		"RCPTMAX=50":                     {rcpts: 50},
		"MAILMAX=20 RCPTMAX=100":         {mails: 20, rcpts: 100},
		"RCPTDOMAINMAX=1":                {domains: 1},
		"rcptmax=3":                      {rcpts: 3},
		"RCPTMAX=999999":                 {rcpts: 999_999},
		"RCPTMAX=50 RCPTMAX=20":          {rcpts: 20},
		"RCPTMAX=20 RCPTMAX=50":          {rcpts: 20},
		"FUTURE=7 FLAG RCPTMAX=2 X=;=":   {rcpts: 2},
		"RCPTMAX=0":                      {},
		"RCPTMAX=-1":                     {},
		"RCPTMAX=+5":                     {},
		"RCPTMAX=05":                     {},
		"RCPTMAX=1000000":                {},
		"RCPTMAX=99999999999999999999":   {},
		"RCPTMAX= RCPTMAX RCPTMAX=x MAX": {},
		"RCPTMAX=5x MAILMAX=1.5":         {},
		"RCPTMAX=٣":                      {},
		"  RCPTMAX=4\tMAILMAX=2 ":        {mails: 2, rcpts: 4},
	} {
		if got := parseLimits(params); got != want {
			t.Errorf("%q: %+v, want %+v", params, got, want)
		}
	}
}

// TestP06ClientLimits: what goes beyond the limits is not said, in groups and one by one.
func TestP06ClientLimits(t *testing.T) {
	t.Parallel()
	to := func(addrs ...string) Transaction {
		tx := transaction(len(addrs))
		for i, a := range addrs {
			tx.Rcpts[i].To.Domain = a
		}
		return tx
	}
	for _, pipelining := range []string{"PIPELINING", "8BITMIME"} {
		t.Run(pipelining, func(t *testing.T) {
			t.Parallel()
			s := smtptest.Start(t, smtptest.Config{Extensions: []string{pipelining, "LIMITS MAILMAX=3 RCPTMAX=2 RCPTDOMAINMAX=2"}})
			c := connect(t, s)
			steps := []struct {
				to        []string
				codes     []int
				stages    []Stage
				exhausted bool
			}{
				{[]string{"a.test", "b.test", "a.test"}, []int{250, 250, 452}, []Stage{StageDot, StageDot, StageHello}, false},
				{[]string{"c.test", "A.test", "b.test"}, []int{452, 250, 250}, []Stage{StageHello, StageDot, StageDot}, false},
				{[]string{"c.test", "d.test"}, []int{452, 452}, []Stage{StageHello, StageHello}, false},
				{[]string{"a.test"}, []int{250}, []Stage{StageDot}, true},
				{[]string{"a.test", "b.test"}, []int{452, 452}, []Stage{StageHello, StageHello}, true},
			}
			for i, step := range steps {
				takes := c.Takes(len(step.to), func(i int) Address { return Address{"x", step.to[i]} })
				res := c.Send(t.Context(), to(step.to...))
				if diff := cmp.Diff(step.codes, codes(res)); diff != "" || res.Err != nil {
					t.Errorf("%d: %s %v", i, diff, res.Err)
				}
				if diff := cmp.Diff(step.stages, res.Stages); diff != "" {
					t.Errorf("%d: %s", i, diff)
				}
				named := 0
				for n := range step.to {
					if got, want := res.Withheld(n), step.codes[n] == 452; got != want {
						t.Errorf("%d: withheld %d: %v", i, n, got)
					} else if !got {
						named++
					}
				}
				if takes != named {
					t.Errorf("%d: Takes was %d, but %d were named", i, takes, named)
				}
				if c.Exhausted() != step.exhausted {
					t.Errorf("%d: exhausted %v", i, c.Exhausted())
				}
			}
			if n := s.Reached(smtptest.PhaseMail); n != 3 {
				t.Errorf("%d MAIL", n)
			}
			if n := s.Reached(smtptest.PhaseRcpt); n != 5 {
				t.Errorf("%d RCPT", n)
			}
		})
	}
}

// TestP06WithheldReplies: who was not named hears of MAIL only.
func TestP06WithheldReplies(t *testing.T) {
	t.Parallel()
	for phase, want := range map[smtptest.Phase][]int{
		smtptest.PhaseMail: {550, 550}, smtptest.PhaseRcpt: {550, 452}, smtptest.PhaseData: {550, 452}, smtptest.PhaseDot: {550, 452},
	} {
		for _, said := range []int{550, 421} {
			t.Run(fmt.Sprint(phase, " ", said), func(t *testing.T) {
				t.Parallel()
				s := smtptest.Start(t, smtptest.Config{Extensions: []string{"LIMITS RCPTMAX=1"}})
				s.On(phase, smtptest.Always(smtptest.Reply(fmt.Sprint(said, " no"))))
				res := connect(t, s).Send(t.Context(), transaction(2))
				got := codes(res)
				for i := range got {
					if got[i] == said {
						got[i] = 550
					}
				}
				if diff := cmp.Diff(want, got); diff != "" || (res.Err != nil) != (said == 421) {
					t.Errorf("%s %v", diff, res.Err)
				}
			})
		}
	}
}
