package suppression

import (
	"hash/maphash"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/smtp"
)

// How long an entry of a bounce lives: Span, twice as long with each further one, Longest at most.
const (
	Span    = 7 * 24 * time.Hour
	Longest = 90 * 24 * time.Hour
)

var (
	sqlBounced   = texts.Bind("bounced", "message_id", "n", "at", "epoch", "address", "reply", "span", "longest")
	sqlDelivered = texts.Bind("delivered", "message_id", "n", "at", "epoch", "address")
)

// End is the end of an attempt, named as the history names it.
type End struct {
	Message [16]byte
	N       int
	At      time.Time
	Epoch   int64
	Address smtp.Address
	Reply   smtp.Reply // of a bounce
}

// Bounced queues the statement that adds an entry for each of ends, in the transaction that writes them into
// the history.
func (l *List) Bounced(batch *pgx.Batch, ends []End) {
	c := columnsOf(ends)
	batch.Queue(sqlBounced, c.id, c.n, c.at, c.epoch, c.address, c.reply, Span, Longest)
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, address := range c.address { // the transaction may fail: then the database says so
		l.known[maphash.String(l.seed, address)] = struct{}{}
	}
}

// Delivered queues the statement that removes the entries of bounces of the addresses of ends, in the
// transaction that writes ends into the history.
func (l *List) Delivered(batch *pgx.Batch, ends []End) {
	c := columnsOf(ends)
	batch.Queue(sqlDelivered, c.id, c.n, c.at, c.epoch, c.address)
}

type columns struct {
	id             [][16]byte
	n              []int32
	at             []time.Time
	epoch          []int64
	address, reply []string
}

func columnsOf(ends []End) (c columns) {
	for _, e := range ends {
		c.id, c.n, c.at, c.epoch = append(c.id, e.Message), append(c.n, int32(e.N)), append(c.at, e.At), append(c.epoch, e.Epoch)
		c.address, c.reply = append(c.address, pg.Storable(Key(e.Address))), append(c.reply, pg.Storable(short(e.Reply.String())))
	}
	return c
}

// short bounds a reply that is kept.
func short(text string) string {
	const most = 500
	if len(text) > most {
		return strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// about lists words that show that a reply with the code of a dead mailbox is about something else: trouble
// that may pass, or ourselves.
var about = []string{
	"rate", "rates", "too many", "too much", "too fast", "too quickly", "limit", "limited", "limits", "exceeded",
	"quota", "full", "storage", "space", "temporary", "temporarily", "try again", "later", "greylisted", "greylisting",
	"policy", "spam", "blocked", "block", "blacklisted", "blocklist", "blocklisted", "blacklist", "dnsbl", "rbl", "reputation", "denied", "authentication",
}

// NoMailbox reports a reply by which a recipient's mail host says that there is no such mailbox, and
// nothing else.
func NoMailbox(r smtp.Reply) bool {
	e := r.Enhanced
	if !r.IsPermanent() || e.Class != 5 {
		return false
	}
	switch [2]int{e.Subject, e.Detail} {
	case [2]int{1, 1}, [2]int{1, 6}, [2]int{1, 10}, [2]int{2, 1}:
	default:
		return false
	}
	text := " " + strings.Join(wordsOf(r.Text), " ") + " "
	return !slices.ContainsFunc(about, func(word string) bool { return strings.Contains(text, " "+word+" ") })
}

// wordsOf are the words of a reply in lower case, without addresses and links: a mailbox may have any name.
func wordsOf(text string) (words []string) {
	for _, word := range strings.Fields(strings.ToLower(text)) {
		if strings.ContainsAny(word, "@/") {
			continue
		}
		words = append(words, strings.FieldsFunc(word, func(r rune) bool { return r < '0' || r > '9' && r < 'a' || r > 'z' && r < 0x80 })...)
	}
	return words
}
