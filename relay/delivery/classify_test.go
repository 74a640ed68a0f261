package delivery

import (
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// TestClassify walks the catalogue of what a server can do to a transaction.
func TestClassify(t *testing.T) {
	t.Parallel()
	ok := smtp.OK(250, 0, 0, "queued as 1")
	busy := smtp.Temporary(451, 3, 0, "later")
	never := smtp.Permanent(550, 1, 1, "no such user")
	closing := smtp.Temporary(421, 3, 2, "closing")
	broken := func(stage smtp.Stage, err error) error { return &smtp.StageError{Stage: stage, Err: err} }
	said := func(stage smtp.Stage, r smtp.Reply) error { return &smtp.StageError{Stage: stage, Reply: r} }
	tooBig := smtp.Permanent(552, 3, 4, "too big")
	lost := smtp.Temporary(451, 4, 2, "conversation lost at the end of the message; it may have been delivered")

	type want struct {
		result  queue.Result
		reply   smtp.Reply
		unknown bool
	}
	tests := []struct {
		name string
		via  string
		res  smtp.Result
		want want
	}{
		{"2yz to the dot", "mx", smtp.Result{Replies: []smtp.Reply{ok}, DotSent: true}, want{queue.Delivered, ok, false}},
		{"251 to RCPT then 2yz", "mx", smtp.Result{Replies: []smtp.Reply{{Code: 251}}, DotSent: true}, want{queue.Delivered, smtp.Reply{Code: 251}, false}},
		{"4yz to the dot", "mx", smtp.Result{Replies: []smtp.Reply{busy}, DotSent: true}, want{queue.Deferred, busy, false}},
		{"5yz to the dot", "mx", smtp.Result{Replies: []smtp.Reply{never}, DotSent: true}, want{queue.Failed, never, false}},
		{"5yz before the dot", "mx", smtp.Result{Replies: []smtp.Reply{never}}, want{queue.Failed, never, false}},
		{"4yz before the dot", "mx", smtp.Result{Replies: []smtp.Reply{busy}}, want{queue.Deferred, busy, false}},
		{"421 to the dot", "mx", smtp.Result{Replies: []smtp.Reply{closing}, Err: said(smtp.StageDot, closing), DotSent: true}, want{queue.Deferred, closing, false}},
		{"421 to MAIL", "mx", smtp.Result{Replies: []smtp.Reply{closing}, Err: said(smtp.StageMail, closing)}, want{queue.Deferred, closing, false}},
		{"421 known by the error only", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: said(smtp.StageMail, closing)}, want{queue.Deferred, closing, false}},
		{"250 without CRLF, then EOF", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageDot, io.ErrUnexpectedEOF), DotSent: true}, want{queue.Deferred, lost, true}},
		{"timeout after the dot", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageDot, os.ErrDeadlineExceeded), DotSent: true},
			want{queue.Deferred, smtp.Temporary(451, 4, 2, "no answer in time at the end of the message; it may have been delivered"), true}},
		{"malformed reply after the dot", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageDot, errors.New("code 999")), DotSent: true}, want{queue.Deferred, lost, true}},
		{"no replies at all after the dot", "mx", smtp.Result{Err: broken(smtp.StageDot, io.EOF), DotSent: true}, want{queue.Deferred, lost, true}},
		{"3yz as the last reply", "mx", smtp.Result{Replies: []smtp.Reply{{Code: 354}}, DotSent: true},
			want{queue.Deferred, smtp.Temporary(451, 3, 0, "the attempt ended without a reply"), true}},
		{"closed in the text", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageBody, io.EOF)},
			want{queue.Deferred, smtp.Temporary(451, 4, 2, "conversation lost while the message was being sent"), false}},
		{"a word of its own in the text", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageBody, &smtp.OutOfStepError{Said: smtp.OK(250, 0, 0, "hello")})},
			want{queue.Deferred, smtp.Temporary(451, 5, 0, `conversation lost while the message was being sent, server is out of step: it said "250 2.0.0 hello"`), false}},
		{"a refusal in the text", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageBody, &smtp.OutOfStepError{Said: tooBig})},
			want{queue.Deferred, smtp.Permanent(552, 3, 4, "too big (said in the middle of the message)"), false}},
		{"malformed reply to MAIL", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: broken(smtp.StageMail, fmt.Errorf("%w: no reply code: %q", smtp.ErrMalformedReply, "<html>"))},
			want{queue.Deferred, smtp.Temporary(451, 5, 0, `conversation lost after MAIL, malformed reply: no reply code: "<html>"`), false}},
		{"2yz without a dot is nothing", "mx", smtp.Result{Replies: []smtp.Reply{ok}, Err: broken(smtp.StageData, io.EOF)},
			want{queue.Deferred, smtp.Temporary(451, 4, 2, "conversation lost after DATA"), false}},
		{"an error of another kind", "mx", smtp.Result{Replies: []smtp.Reply{{}}, Err: errors.New("odd")},
			want{queue.Deferred, smtp.Temporary(451, 3, 0, "the attempt ended without a reply"), false}},
		{"enhanced code contradicts: the basic code wins", "mx",
			smtp.Result{Replies: []smtp.Reply{{Code: 450, Enhanced: smtp.EnhancedCode{Class: 5, Subject: 1, Detail: 1}}}},
			want{queue.Deferred, smtp.Reply{Code: 450, Enhanced: smtp.EnhancedCode{Class: 5, Subject: 1, Detail: 1}}, false}},
		{"552 for too many recipients", "mx", smtp.Result{Replies: []smtp.Reply{smtp.Permanent(552, 5, 3, "too many")}},
			want{queue.Deferred, smtp.Permanent(552, 5, 3, "too many"), false}},
		{"552 for the size", "mx", smtp.Result{Replies: []smtp.Reply{smtp.Permanent(552, 3, 4, "too big")}},
			want{queue.Failed, smtp.Permanent(552, 3, 4, "too big"), false}},
		{"530 of an upstream concerns our account", "sink", smtp.Result{Replies: []smtp.Reply{smtp.Permanent(530, 7, 0, "authenticate")}},
			want{queue.Deferred, smtp.Permanent(530, 7, 0, "authenticate"), false}},
		{"530 of an MX is a refusal", "mx", smtp.Result{Replies: []smtp.Reply{smtp.Permanent(530, 7, 0, "authenticate")}},
			want{queue.Failed, smtp.Permanent(530, 7, 0, "authenticate"), false}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			rcpts := []queue.Recipient{{N: 3, Attempts: 2}}
			var replies *upstream.Replies
			if test.via != "mx" {
				replies = upstream.Table(upstream.Generic)
			}
			got := classify(queue.Outcome{Upstream: test.via}, rcpts, test.res, judging{replies, func(n int) time.Duration { return time.Duration(n) * time.Minute }})
			o := got[0]
			if diff := cmp.Diff(test.want, want{o.Result, o.Reply, o.Unknown}, cmp.AllowUnexported(want{})); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			if o.N != 3 {
				t.Errorf("recipient %d, want 3", o.N)
			}
			wait := 2 * time.Minute
			if o.Unknown {
				wait = queue.DoubtWait
			}
			if retry := o.RetryIn; (o.Result == queue.Deferred) != (retry == wait) {
				t.Errorf("%s with a retry in %v", o.Result, retry)
			}
		})
	}
}

func TestClassifyEachRecipient(t *testing.T) {
	t.Parallel()
	rcpts := []queue.Recipient{{N: 0}, {N: 1}, {N: 2}, {N: 3}}
	res := smtp.Result{
		Replies: []smtp.Reply{smtp.Permanent(550, 1, 1, "no"), smtp.OK(250, 0, 0, "ok"), smtp.Temporary(450, 2, 0, "grey"), smtp.Temporary(452, 5, 3, "many")},
		Stages:  []smtp.Stage{smtp.StageRcpt, smtp.StageDot, smtp.StageRcpt, smtp.StageRcpt},
		DotSent: true, DSN: true,
	}
	outcomes := classify(queue.Outcome{Upstream: "mx"}, rcpts, res, judging{retryIn: func(int) time.Duration { return time.Minute }})
	var results []queue.Result
	for i, o := range outcomes {
		results = append(results, o.Result)
		if o.DSNPassed != (i == 1) {
			t.Errorf("recipient %d: DSNPassed %v", i, o.DSNPassed)
		}
	}
	if diff := cmp.Diff([]queue.Result{queue.Failed, queue.Delivered, queue.Deferred, queue.Deferred}, results); diff != "" {
		t.Error(diff)
	}
	tx, j := &transaction{res: res, conn: &conn{Conn: &connect.Conn{}}}, &job{rcpts: rcpts}
	if rest := tx.further(j, outcomes); len(rest) != 1 || rest[0].N != 3 {
		t.Errorf("for another transaction: %v, want recipient 3", rest)
	}
	outcomes[1].Result = queue.Deferred
	if rest := tx.further(j, outcomes); rest != nil {
		t.Errorf("without progress another transaction is begun for %v", rest)
	}
}

// TestP07TooMany walks the wordings of a limit on recipients, and what only looks like one.
func TestP07TooMany(t *testing.T) {
	t.Parallel()
	said := func(code int, enhanced string, text string) smtp.Reply {
		r := smtp.Reply{Code: code, Text: text}
		if enhanced != "" {
			_, _ = fmt.Sscanf(enhanced, "%d.%d.%d", &r.Enhanced.Class, &r.Enhanced.Subject, &r.Enhanced.Detail)
		}
		return r
	}
	const again, failed, deferred = "again", "failed", "deferred"
	tests := []struct {
		reply        smtp.Reply
		after, first string // what it means behind an accepted recipient, and as the first
	}{
		{said(452, "4.5.3", "Too many recipients"), again, deferred},
		{said(452, "", "too many recipients"), again, deferred},
		{said(452, "", "enough"), again, deferred},
		{said(552, "5.5.3", "Maximum limit of 2 recipients reached"), again, deferred},
		{said(552, "", "too much mail data"), again, failed},
		{said(550, "5.5.3", "Too many recipients"), again, failed},
		{said(554, "5.5.3", "limit"), again, failed},
		{said(451, "4.5.3", "wait"), again, deferred},
		{said(450, "4.5.3", "wait"), again, deferred},
		{said(550, "", "Too many recipients"), again, failed},
		{said(554, "5.7.1", "too many recipients for you"), again, failed},
		{said(451, "", "too many recipients"), again, deferred},
		{said(552, "5.2.2", "mailbox full"), failed, failed},
		{said(552, "5.3.4", "too big"), failed, failed},
		{said(452, "4.2.2", "mailbox full"), deferred, deferred},
		{said(452, "4.3.1", "out of space"), deferred, deferred},
		{said(450, "", "greylisted"), deferred, deferred},
		{said(550, "5.1.1", "<too many recipients@one.test> unknown"), failed, failed},
		{said(550, "", "no"), failed, failed},
	}
	retry := func(int) time.Duration { return time.Minute }
	for _, test := range tests {
		t.Run(test.reply.String(), func(t *testing.T) {
			t.Parallel()
			ok := smtp.OK(250, 0, 0, "ok")
			for i, want := range []string{test.after, test.first} {
				res := smtp.Result{Replies: []smtp.Reply{ok, test.reply}, Stages: []smtp.Stage{smtp.StageDot, smtp.StageRcpt}, DotSent: true}
				if i == 1 {
					res.Replies, res.Stages = []smtp.Reply{test.reply, ok}, []smtp.Stage{smtp.StageRcpt, smtp.StageDot}
				}
				j := &job{rcpts: []queue.Recipient{{N: 0}, {N: 1}}}
				outcomes := classify(queue.Outcome{Upstream: "mx"}, j.rcpts, res, judging{retryIn: retry})
				got := string(outcomes[1-i].Result)
				if rest := (&transaction{res: res, conn: &conn{Conn: &connect.Conn{}}}).further(j, outcomes); len(rest) == 1 && rest[0].N == 1-i {
					got = again
				} else if rest != nil {
					t.Errorf("again: %v", rest)
				}
				if got != want {
					t.Errorf("at %d: %s, want %s", 1-i, got, want)
				}
			}
		})
	}
}

// TestP07TooManyOfALostTransaction: what was meant for another transaction is not final
// because this one comes to no end.
func TestP07TooManyOfALostTransaction(t *testing.T) {
	t.Parallel()
	many := smtp.Permanent(550, 5, 3, "no more")
	closing := smtp.Temporary(421, 3, 2, "closing")
	for name, res := range map[string]smtp.Result{
		"after the dot": {Replies: []smtp.Reply{{}, many}, Stages: []smtp.Stage{"", smtp.StageRcpt}, DotSent: true, Err: &smtp.StageError{Stage: smtp.StageDot, Err: io.EOF}},
		"in the text":   {Replies: []smtp.Reply{{}, many}, Stages: []smtp.Stage{"", smtp.StageRcpt}, Err: &smtp.StageError{Stage: smtp.StageBody, Err: io.EOF}},
		"421 at RCPT":   {Replies: []smtp.Reply{closing, many}, Stages: []smtp.Stage{smtp.StageRcpt, smtp.StageRcpt}, Err: &smtp.StageError{Stage: smtp.StageRcpt, Reply: closing}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rcpts := []queue.Recipient{{N: 0}, {N: 1}}
			o := classify(queue.Outcome{Upstream: "mx"}, rcpts, res, judging{retryIn: func(int) time.Duration { return time.Minute }})[1]
			if o.Result != queue.Deferred || o.Reply != many || o.RetryIn == 0 {
				t.Errorf("outcome %+v, want deferred", o)
			}
		})
	}
}

func TestRetryWait(t *testing.T) {
	t.Parallel()
	id := queue.NewID()
	for attempts, want := range []time.Duration{
		time.Minute, 5 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour,
		2 * time.Hour, 4 * time.Hour, 4 * time.Hour, 4 * time.Hour,
	} {
		got := retryWait(defaultSchedule, attempts, id)
		if got < want-want/10 || got > want+want/10 {
			t.Errorf("after %d attempts: %v, want %v within a tenth", attempts, got, want)
		}
		if again := retryWait(defaultSchedule, attempts, id); again != got {
			t.Errorf("after %d attempts: %v and then %v", attempts, got, again)
		}
	}
	different := map[time.Duration]bool{}
	for range 20 {
		different[retryWait(defaultSchedule, 0, queue.NewID())] = true
	}
	if len(different) < 10 {
		t.Errorf("20 messages that failed together come back at %d times", len(different))
	}
}
