package smtp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
)

// body writes the message up to the final dot.
func (s *sending) body() error {
	s.writer = blockWriter{c: s.c, ctx: s.ctx}
	s.buffer.Reset(&s.writer)
	data := NewDataWriter(s.buffer)
	if err := s.copyBody(data); err != nil {
		return err
	}
	if err := data.EndLine(); err != nil {
		return s.bodyTrouble(err)
	}
	if s.tx.BeforeDot != nil {
		if err := s.tx.BeforeDot(); err != nil {
			return s.c.trouble(s.ctx, StageBody, err)
		}
	}
	return nil
}

func (s *sending) copyBody(data *DataWriter) error {
	var copied int64
	for {
		n, readErr := s.tx.Body.Read(s.block[:])
		if _, err := data.Write(s.block[:n]); err != nil {
			return s.bodyTrouble(err)
		}
		copied += int64(n)
		if readErr == io.EOF {
			break
		}
		if readErr != nil {
			return s.c.trouble(s.ctx, StageBody, fmt.Errorf("read message: %w", readErr))
		}
	}
	if s.tx.Size > 0 && copied != s.tx.Size {
		return s.c.trouble(s.ctx, StageBody, fmt.Errorf("read message: %d octets instead of %d", copied, s.tx.Size))
	}
	return nil
}

// bodyTrouble ends a transaction whose data could not be written. A server that
// hung up may have said why.
func (s *sending) bodyTrouble(err error) error {
	local := errors.Is(err, ErrDataWrite) || errors.Is(err, os.ErrDeadlineExceeded)
	if !local && s.ctx.Err() == nil {
		if heard := s.c.interjection(s.ctx, StageBody); isSaid(heard) {
			return heard
		}
	}
	return s.c.trouble(s.ctx, StageBody, err)
}

// isSaid reports an error that tells what a server said.
func isSaid(err error) bool {
	stage, ok := errors.AsType[*StageError](err)
	return ok && (!stage.Reply.IsZero() || errors.Is(stage.Err, ErrOutOfStep) || errors.Is(stage.Err, ErrMalformedReply))
}

// end sends the final dot and hears what became of the message. A server that has
// spoken already gets no dot: what it said would pass for its reply to the dot.
func (s *sending) end() error {
	if err := s.c.silent(s.ctx); err != nil {
		if s.c.unasked() {
			return s.c.interjection(s.ctx, StageBody)
		}
		return s.c.trouble(s.ctx, StageBody, err)
	}
	// Of what leaves from now on, the dot is a part.
	s.dotSent = true
	_, _ = s.buffer.WriteString(".\r\n") // its error comes again from Flush
	if err := s.buffer.Flush(); err != nil {
		return s.c.trouble(s.ctx, StageDot, err)
	}
	reply, err := s.c.hear(s.ctx, StageDot, s.c.cfg.Timeouts.DataDone)
	if err != nil {
		return err
	}
	s.c.open = false // RFC 5321 section 4.1.1.4: any reply ends the transaction
	if reply.IsIntermediate() {
		return s.c.outOfStep(s.ctx, StageDot, reply)
	}
	s.answer(StageDot, reply)
	return nil
}

// endEmpty ends the data of a transaction without recipients, which a server that
// pipelines may have begun: a lone dot, whatever it says (RFC 2920 section 3.1).
func (s *sending) endEmpty() error {
	if err := s.c.say(s.ctx, StageDot, s.c.cfg.Timeouts.DataBlock, []byte(".\r\n")); err != nil {
		return err
	}
	reply, err := s.c.hear(s.ctx, StageDot, s.c.cfg.Timeouts.DataDone)
	if err != nil {
		return err
	}
	s.c.open = false
	if reply.IsIntermediate() {
		return s.c.outOfStep(s.ctx, StageDot, reply)
	}
	return nil
}

// maxBlock is how much may leave under one deadline.
const maxBlock = 64 << 10

// blockWriter writes message data; each block has a deadline of its own.
type blockWriter struct {
	c   *Client
	ctx context.Context
}

func (w *blockWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		if err := w.c.arm(w.ctx, w.c.cfg.Timeouts.DataBlock); err != nil {
			return done, err
		}
		n, err := w.c.conn.Write(p[done:min(len(p), done+maxBlock)])
		done += n
		if err != nil {
			return done, err
		}
		w.c.moved()
	}
	return done, nil
}
