package smtp

import (
	"bytes"
	"fmt"
	"time"
)

// maxUnanswered bounds the commands in flight: their replies must fit into the
// buffers of the connection, or both sides could wait for each other to read
// (RFC 2920 section 3.1).
const maxUnanswered = 128

// The commands of an envelope: these, and n ≥ 0 for RCPT of recipient n.
const (
	stepReset = -1 - iota
	stepMail
	stepData
)

// envelope says MAIL, RCPT and DATA and hears the replies: in groups when the
// server offers PIPELINING (RFC 2920), else one by one. Afterwards begun says
// whether the server waits for data.
func (s *sending) envelope() error {
	unanswered := 1
	if s.c.offers("PIPELINING") {
		unanswered = maxUnanswered
	}
	for steps := s.plan(); len(steps) > 0 && !s.pointless(steps); {
		group := steps[:min(unanswered, len(steps))]
		steps = steps[len(group):]
		if err := s.sayGroup(group); err != nil {
			return err
		}
		if err := s.hearGroup(group); err != nil {
			return err
		}
	}
	return nil
}

func (s *sending) plan() []int {
	steps := s.steps[:0]
	if s.c.open {
		steps = append(steps, stepReset)
	}
	steps = append(steps, stepMail)
	for i := range s.replies {
		if s.isOpen(i) {
			steps = append(steps, i)
		}
	}
	s.steps = append(steps, stepData)
	return s.steps
}

// pointless reports that nothing can come of the steps that are left.
func (s *sending) pointless(left []int) bool {
	return s.refused || left[0] == stepData && s.accepted == 0
}

// sayGroup writes the commands of group in one write.
func (s *sending) sayGroup(group []int) error {
	lines := s.lines[:0]
	for _, step := range group {
		begin := len(lines)
		switch step {
		case stepReset:
			lines = append(lines, "RSET"...)
		case stepMail:
			s.c.mails++
			lines = s.tx.Mail.Append(lines)
		case stepData:
			lines = append(lines, "DATA"...)
		default:
			lines = s.rcpt(step).Append(lines)
		}
		if bytes.ContainsAny(lines[begin:], "\r\n\x00") {
			return s.c.trouble(s.ctx, stageOf(step), fmt.Errorf("command %q would be more than one line", lines[begin:]))
		}
		lines = append(lines, "\r\n"...)
	}
	s.lines = lines
	return s.c.say(s.ctx, stageOf(group[0]), s.c.cfg.Timeouts.Command, lines)
}

func (s *sending) hearGroup(group []int) error {
	for _, step := range group {
		reply, err := s.c.hear(s.ctx, stageOf(step), s.patience(step))
		if err != nil {
			return err
		}
		if !s.take(step, reply) {
			// Which reply belongs to which command is no longer known, so the
			// refusals heard so far may have been meant for others.
			for _, i := range s.steps {
				if i >= 0 {
					s.replies[i], s.stages[i] = Reply{}, ""
				}
			}
			return s.c.outOfStep(s.ctx, stageOf(step), reply)
		}
	}
	return nil
}

func (s *sending) patience(step int) time.Duration {
	if step == stepData {
		return s.c.cfg.Timeouts.DataInit
	}
	return s.c.cfg.Timeouts.Command
}

func stageOf(step int) Stage {
	switch {
	case step >= 0:
		return StageRcpt
	case step == stepData:
		return StageData
	}
	return StageMail
}

// take draws the consequence of one reply. It reports false when the reply is none
// that this command can have.
func (s *sending) take(step int, reply Reply) bool {
	negative := reply.IsTemporary() || reply.IsPermanent()
	switch {
	case step == stepData:
		// RFC 5321 section 4.1.1.4 knows no other go-ahead than 354.
		s.begun = reply.Code == 354
		if negative {
			s.answer(StageData, reply)
		}
		return s.begun || negative
	case !negative && !reply.IsPositive():
		return false
	case step == stepReset:
		s.c.open = false
		return reply.IsPositive()
	case step == stepMail:
		s.c.open = reply.IsPositive()
		if s.refused = negative; negative {
			s.answer(StageMail, reply)
		}
	case s.refused: // of no meaning after MAIL was
	case negative:
		s.replies[step], s.stages[step] = reply, StageRcpt
	default:
		s.accepted++
	}
	return true
}
