package bounce

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync/atomic"
	"time"

	"postern/relay/dkim"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// Queue is the part of the queue that notices need.
type Queue interface {
	ClaimNotices(ctx context.Context, messages int) ([]*queue.Notice, error)
	EnqueueNotice(ctx context.Context, n *queue.Notice, m queue.Message, rcpt queue.Recipient, body []byte) error
	ReleaseNotice(n *queue.Notice, wait time.Duration)
	TellLost(ctx context.Context, tell func(queue.LostNotice)) error
}

// Config configures a Bouncer.
type Config struct {
	Queue    Queue
	Hostname string    // our name in the notices
	Keys     dkim.Keys // that sign them; may be nil
	Mail     *maillog.Logger
	Log      *slog.Logger
	Poll     time.Duration    // how often due notices are looked for; default 1 s
	Now      func() time.Time // default time.Now
}

const (
	batch      = 64               // notices in one claim
	retryAfter = 30 * time.Second // wait after trouble with one notice
	afterPanic = time.Hour        // wait after a defect of ours
	workLimit  = time.Minute      // for one claim or one notice
)

// Bouncer turns due notices into messages, one after the other.
type Bouncer struct {
	cfg    Config
	panics atomic.Int64 // recovered: defects of ours
}

// New makes a Bouncer.
func New(cfg Config) *Bouncer {
	if cfg.Poll == 0 {
		cfg.Poll = time.Second
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Mail == nil {
		cfg.Mail = maillog.New(nil)
	}
	return &Bouncer{cfg: cfg}
}

// Run works until ctx ends, and finishes the notice under way.
func (b *Bouncer) Run(ctx context.Context) {
	tick := time.NewTicker(b.cfg.Poll)
	defer tick.Stop()
	troubled := false // the same trouble each second is said once
	for {
		n, err := b.round(ctx)
		if err != nil && !troubled && ctx.Err() == nil {
			b.cfg.Log.Warn("cannot look for due notices, will retry", "error", err)
		}
		troubled = err != nil
		if n == batch {
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round claims one batch and works through it, and logs the notices that were lost. It
// returns how many it claimed.
func (b *Bouncer) round(ctx context.Context) (int, error) {
	if ctx.Err() != nil {
		return 0, ctx.Err()
	}
	claimCtx, cancel := context.WithTimeout(ctx, workLimit)
	notices, err := b.cfg.Queue.ClaimNotices(claimCtx, batch)
	cancel()
	if err != nil {
		return 0, err
	}
	for _, n := range notices {
		if ctx.Err() != nil { // another node tells, or this one after its restart
			b.cfg.Queue.ReleaseNotice(n, 0)
			continue
		}
		b.work(context.WithoutCancel(ctx), n)
	}
	return len(notices), b.cfg.Queue.TellLost(ctx, b.lost)
}

func (b *Bouncer) lost(n queue.LostNotice) {
	b.cfg.Mail.NoticeLost(maillog.LostNoticeEvent{
		ID: n.ID.String(), About: n.About.String(), Kind: string(n.Kind), To: n.To, Reply: n.Reply, Reason: n.Loss,
	})
}

// work brings one notice to its end or gives it back. A panic costs this notice an
// hour and not the process: it would come back after every restart.
func (b *Bouncer) work(ctx context.Context, n *queue.Notice) {
	defer func() {
		if r := recover(); r != nil {
			b.panics.Add(1)
			b.cfg.Log.Error("panic in a notice", "about", n.Message.ID, "panic", r, "stack", string(debug.Stack()))
			b.cfg.Queue.ReleaseNotice(n, afterPanic)
		}
	}()
	if err := b.tell(ctx, n); err != nil {
		b.cfg.Log.Warn("notice", "about", n.Message.ID, "kind", n.Kind, "error", err)
		b.cfg.Queue.ReleaseNotice(n, retryAfter)
	}
}

// tell commits the notice for n. An error leaves n with the caller.
func (b *Bouncer) tell(ctx context.Context, n *queue.Notice) error {
	if n.Body != nil {
		defer n.Body.Drop()
	}
	ctx, cancel := context.WithTimeout(ctx, workLimit)
	defer cancel()
	if n.Message.Sender.IsNull() { // RFC 5321 section 6.1; the queue should not have asked
		return b.skip(ctx, n, "null sender")
	}
	r := report{notice: n, id: queue.NewID(), hostname: b.cfg.Hostname, now: b.cfg.Now()}
	var err error
	if r.original, r.full, err = original(n); err != nil {
		return fmt.Errorf("read the original: %w", err)
	}
	body := r.bytes()
	m := queue.Message{
		ID: r.id, Size: int64(len(body)), AcceptedAt: r.now,
		MessageID: "<" + r.id.String() + "@" + b.cfg.Hostname + ">",
		UTF8:      n.Message.Sender.NeedsUTF8(),
		EightBit:  !smtp.IsASCII(body),
		Listener:  "notice",
		BodyHash:  dkim.HashOf(b.cfg.Keys, smtp.Address{Domain: b.cfg.Hostname}.DomainKey(), body),
		TLSNeed:   n.Message.TLSNeed, // RFC 8689 section 5
	}
	// NOTIFY=NEVER: nobody is to be told about a notice (RFC 3461 section 6.2).
	rcpt := queue.Recipient{Address: n.Message.Sender, Notify: smtp.NotifyNever}
	if err := b.cfg.Queue.EnqueueNotice(ctx, n, m, rcpt, body); err != nil {
		return err
	}
	b.cfg.Mail.Notice(maillog.NoticeEvent{
		ID: r.id.String(), About: n.Message.ID.String(), Kind: string(n.Kind),
		To: n.Message.Sender, Recipients: len(n.Recipients),
	})
	return nil
}

// skip marks n as told without a message.
func (b *Bouncer) skip(ctx context.Context, n *queue.Notice, why string) error {
	if err := b.cfg.Queue.EnqueueNotice(ctx, n, queue.Message{}, queue.Recipient{}, nil); err != nil {
		return err
	}
	b.cfg.Mail.Notice(maillog.NoticeEvent{
		About: n.Message.ID.String(), Kind: string(n.Kind), Recipients: len(n.Recipients), Suppressed: why,
	})
	return nil
}

// original returns what of the message goes into the notice. RET says it for a failure (RFC 3461
// section 4.3) and for mail in doubt; other notices carry the header section only, and so do those of
// a message that not every way back takes: message/rfc822 cannot be encoded (RFC 2046 section 5.2.1).
// Of a message with REQUIRETLS there is nothing: its notice also goes where REQUIRETLS is not offered.
func original(n *queue.Notice) (octets []byte, full bool, err error) {
	if n.Message.TLSNeed == smtp.TLSRequired {
		return nil, false, nil
	}
	whole := (n.Kind == queue.NoticeFailure || n.Kind == queue.NoticeDoubt) && n.Message.Ret != smtp.ReturnHeaders &&
		n.Body != nil && n.Body.Size() <= maxReturned
	if !whole {
		return n.Headers, false, nil
	}
	octets = make([]byte, n.Body.Size())
	if _, err := n.Body.ReadAt(octets, 0); errors.Is(err, content.ErrDamaged) {
		return n.Headers, false, nil
	} else if err != nil && !errors.Is(err, io.EOF) {
		return nil, false, err
	}
	if !sevenBit(octets) {
		return n.Headers, false, nil
	}
	return octets, true, nil
}
