package smtp

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
)

// Send runs one transaction, pipelined when the server offers it. SIZE, BODY,
// SMTPUTF8 and the DSN parameters are written only where offered, AUTH= only where
// we have authenticated (RFC 4954 section 5). A message or recipient that the
// server cannot take gets a made-up reply, without anything on the wire: 552 5.3.4 for a
// message over its SIZE, 554 5.6.3 for 8BITMIME (by MailCommand.Body), 553 5.6.7
// for SMTPUTF8, this only for the recipients that need it unless the message
// (MailCommand.UTF8) or its sender does.
//
// The number of octets that Body gives must be Size, unless Size is 0: a message
// that was cut short is never ended by a dot.
func (c *Client) Send(ctx context.Context, tx Transaction) Result {
	if len(tx.Rcpts) == 0 {
		return Result{}
	}
	s := sending{c: c, ctx: ctx, tx: tx, replies: make([]Reply, len(tx.Rcpts)), stages: make([]Stage, len(tx.Rcpts))}
	if c.closed || !c.ready {
		return s.result(&StageError{Stage: StageMail, Err: net.ErrClosed})
	}
	if s.fit(); s.answered() {
		return s.result(nil)
	}
	defer c.watch(ctx)()
	s.outbox = outboxes.Get().(*outbox)
	defer s.outbox.release()
	return s.result(s.run())
}

// Rehearse names a sender and, unless to is null, a recipient as Send does, and takes that back by
// RSET: no message is sent. The error is a *StageError; after a refusal by a reply Send or Quit may
// follow, without RSET.
func (c *Client) Rehearse(ctx context.Context, from, to Address) error {
	tx := Transaction{Mail: MailCommand{From: from}, Rcpts: []RcptCommand{{To: to}}}
	s := sending{c: c, ctx: ctx, tx: tx, replies: make([]Reply, 1), stages: make([]Stage, 1)}
	if c.closed || !c.ready {
		return &StageError{Stage: StageMail, Err: net.ErrClosed}
	}
	defer c.watch(ctx)()
	s.outbox = outboxes.Get().(*outbox)
	defer s.outbox.release()
	s.steps = s.steps[:0]
	s.fit()
	for _, step := range []int{stepMail, 0} {
		if s.answered() || step == 0 && to.IsNull() {
			break
		}
		if err := s.sayGroup([]int{step}); err != nil {
			return err
		}
		if err := s.hearGroup([]int{step}); err != nil {
			return err
		}
	}
	if res := s.result(nil); !res.Replies[0].IsZero() {
		return &StageError{Stage: res.Stages[0], Reply: res.Replies[0]}
	}
	reply, err := c.command(ctx, StageReset, "RSET")
	if err == nil && !reply.IsPositive() {
		err = c.refused(ctx, StageReset, reply)
	}
	c.open = err != nil
	return err
}

// sending is one transaction in progress.
type sending struct {
	c       *Client
	ctx     context.Context
	tx      Transaction
	replies []Reply
	stages  []Stage // of replies
	*outbox

	refused  bool // MAIL was
	accepted int  // recipients accepted
	begun    bool // DATA was answered by 354
	dotSent  bool
}

// outbox is the memory that a transaction needs only while it runs.
type outbox struct {
	steps  []int
	lines  []byte
	block  [32 << 10]byte
	writer blockWriter
	buffer *bufio.Writer
}

var outboxes = sync.Pool{New: func() any {
	o := new(outbox)
	o.buffer = bufio.NewWriterSize(&o.writer, 32<<10)
	return o
}}

func (o *outbox) release() {
	o.writer = blockWriter{}
	o.buffer.Reset(&o.writer)
	outboxes.Put(o)
}

// run holds the conversation.
func (s *sending) run() error {
	if err := s.c.silent(s.ctx); err != nil {
		if s.c.unasked() {
			return s.c.interjection(s.ctx, StageMail)
		}
		return s.c.trouble(s.ctx, StageMail, err)
	}
	if err := s.envelope(); err != nil || !s.begun {
		return err
	}
	if s.accepted == 0 {
		return s.endEmpty()
	}
	if err := s.body(); err != nil {
		return err
	}
	return s.end()
}

// result turns the end of the conversation into a Result. 421 answers everybody who
// has no answer yet.
func (s *sending) result(err error) Result {
	if stage, ok := errors.AsType[*StageError](err); ok && !stage.Reply.IsZero() {
		s.answer(stage.Stage, stage.Reply)
	}
	for i := range s.replies {
		if s.replies[i].IsZero() && s.stages[i] == StageHello {
			s.replies[i] = Temporary(452, 5, 3, "Next server takes no more recipients in this transaction (LIMITS)")
		}
	}
	return Result{Replies: s.replies, Stages: s.stages, Err: err, DotSent: s.dotSent, DSN: s.c.offers("DSN")}
}

// answer gives reply to every recipient that has none yet. To those that are withheld
// only a reply to MAIL speaks.
func (s *sending) answer(stage Stage, reply Reply) {
	for i := range s.replies {
		if s.isOpen(i) || s.replies[i].IsZero() && stage == StageMail {
			s.replies[i], s.stages[i] = reply, stage
		}
	}
}

func (s *sending) answered() bool {
	for i := range s.replies {
		if s.isOpen(i) {
			return false
		}
	}
	return true
}
