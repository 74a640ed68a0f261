package insert

import (
	"bytes"
	"context"
	"embed"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/policy/quota"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

// keptBuffer is how large a buffer of bodies may be that is kept for the next group.
const keptBuffer = 2 << 20

// The statement of a group commit, for mail without limits and keys, for mail with keys and without
// limits, for other mail, and for a commit in doubt. Mail without limits and keys does not pay for them.
var (
	sqlEnqueue       = bindEnqueue("enqueue", pg.Constants{"judged": "false", "again": "false"})
	sqlEnqueueKeyed  = bindEnqueue("enqueue_keyed", pg.Constants{"judged": "false", "again": "false"})
	sqlEnqueueJudged = bindEnqueue("enqueue", pg.Constants{"judged": "true", "again": "false"})
	sqlEnqueueAgain  = bindEnqueue("enqueue", pg.Constants{"judged": "true", "again": "true"})
)

func bindEnqueue(name string, constants pg.Constants) string {
	return texts.BindWith(name, constants, pg.Names(new(Group).arguments)...)
}

// The events of a recipient that its sender wants to be told about (column tell).
const (
	tellFailure int16 = 1 << iota
	tellDelay
	tellSuccess
	// isSuppressed stands beside them so that it costs no column: the recipient is Suppressed.
	isSuppressed
)

// Owner is the node that recipients are born owned by, and for how long they live.
type Owner struct {
	Epoch    int64
	Node     string
	Lifetime time.Duration
}

// Result is what became of one message.
type Result struct {
	Held   bool      // it waits for an admin to release it
	Copies []int     // recipients that are duplicates
	First  uuid.UUID // the oldest message that they are of
	Err    error     // a *quota.Over or an *OtherContent: the message is in no table
}

// Group holds the columns of one statement; its slices are reused. The zero Group is an empty one.
type Group struct {
	owner                        Owner
	id                           [][16]byte
	user, credential, size       []int64
	local, domain, bodyType, ret []string
	utf8, eightBit               []bool
	envid, headerID, addr, hello []string
	listener, tls, tlsNeed       []string
	acceptedAt                   []time.Time
	recipients                   []int32
	rule                         []string
	bodyHash                     [][]byte
	tags, metadata               []string
	charged                      []quota.Charge
	charges                      quota.Charges
	results                      []Result // of its messages
	bodyID                       [][16]byte
	bodyN                        []int32
	chunk                        [][]byte
	buf                          []byte
	dot                          []bool // of its messages, as is all above but the bodies
	rMessage, rN                 []int32
	tell, notify                 []int16
	key, rLocal, rDomain, rType  []string
	orcpt                        []string
	keys                         []groupKey
	dupKey, dupContent           [][16]byte // of keys
	dupMessage, dupN, dupSpan    []int32
	keyed, hasORcpt, hashed      bool // some key is not the domain; some recipient has an ORCPT, some message a hash
	needsTLS, tagged             bool // some message has a TLSNeed; tags or metadata
	args                         pg.Args

	// Wary is how many statements are to look for duplicates before they insert mail without limits.
	Wary int

	inserted int  // messages
	again    bool // the last statement was for a commit in doubt
}

// arguments adds the columns with their names in enqueue.sql.
func (g *Group) arguments(a *pg.Args) {
	a.Add("epoch", g.owner.Epoch)
	a.Add("node", g.owner.Node)
	a.Add("lifetime", g.owner.Lifetime)

	a.Add("id", g.id)
	a.Add("user_id", g.user)
	a.Add("credential_id", g.credential)
	a.Add("sender_local", g.local)
	a.Add("sender_domain", g.domain)
	a.Add("size", g.size)
	a.Add("body_type", g.bodyType)
	a.Add("utf8", g.utf8)
	a.Add("eight_bit", g.eightBit)
	a.Add("ret", g.ret)
	a.Add("envid", g.envid)
	a.Add("header_id", g.headerID)
	a.Add("accepted_at", g.acceptedAt)
	a.Add("client_addr", g.addr)
	a.Add("client_hello", g.hello)
	a.Add("listener", g.listener)
	a.Add("tls", g.tls)
	a.Add("tls_need", unless(g.needsTLS, g.tlsNeed))
	a.Add("recipients", g.recipients)
	a.Add("rule", g.rule)
	a.Add("body_hash", unless(g.hashed, g.bodyHash))
	a.Add("tags", unless(g.tagged, g.tags))
	a.Add("metadata", unless(g.tagged, g.metadata))
	a.Add("dot_possible", g.dot)

	a.Add("body_id", g.bodyID)
	a.Add("body_n", g.bodyN)
	a.Add("chunk", g.chunk)

	a.Add("rcpt_message", g.rMessage)
	a.Add("rcpt_n", g.rN)
	a.Add("tell", g.tell)
	a.Add("notify", g.notify)
	a.Add("local", g.rLocal)
	a.Add("domain", g.rDomain)
	a.Add("domain_key", unless(g.keyed, g.key))
	a.Add("orcpt_type", unless(g.hasORcpt, g.rType))
	a.Add("orcpt", unless(g.hasORcpt, g.orcpt))

	g.sortKeys()
	a.Add("key", g.dupKey)
	a.Add("key_message", g.dupMessage)
	a.Add("key_n", g.dupN)
	a.Add("key_span", g.dupSpan)
	a.Add("key_content", g.dupContent)

	g.charges.Arguments(a)
}

// unless returns null in place of a list that says nothing.
func unless[T any](says bool, list []T) any {
	if !says {
		return nil
	}
	return list
}

// Reset forgets the messages.
func (g *Group) Reset() {
	clear(g.chunk)
	clear(g.bodyHash)
	g.charges.Fill(nil)
	*g = Group{
		id: g.id[:0], user: g.user[:0], credential: g.credential[:0], size: g.size[:0],
		local: g.local[:0], domain: g.domain[:0], bodyType: g.bodyType[:0], ret: g.ret[:0], utf8: g.utf8[:0], eightBit: g.eightBit[:0],
		envid: g.envid[:0], headerID: g.headerID[:0], addr: g.addr[:0], hello: g.hello[:0],
		listener: g.listener[:0], tls: g.tls[:0], tlsNeed: g.tlsNeed[:0], acceptedAt: g.acceptedAt[:0], recipients: g.recipients[:0], rule: g.rule[:0], bodyHash: g.bodyHash[:0], tags: g.tags[:0], metadata: g.metadata[:0], charged: g.charged[:0], charges: g.charges, results: g.results[:0],
		bodyID: g.bodyID[:0], bodyN: g.bodyN[:0], chunk: g.chunk[:0], buf: g.buf[:0],
		dot: g.dot[:0], rMessage: g.rMessage[:0], rN: g.rN[:0], tell: g.tell[:0], notify: g.notify[:0],
		key: g.key[:0], rLocal: g.rLocal[:0], rDomain: g.rDomain[:0], rType: g.rType[:0], orcpt: g.orcpt[:0],
		keys: g.keys[:0], dupKey: g.dupKey, dupContent: g.dupContent, dupMessage: g.dupMessage, dupN: g.dupN, dupSpan: g.dupSpan, Wary: g.Wary, args: g.args,
	}
	if cap(g.buf) > keptBuffer {
		g.buf = nil
	}
}

// Add adds a message; keys are those of m.Key. dotPossible says that this node may send the final dot
// before its rows are marked.
func (g *Group) Add(m *Message, rcpts []Recipient, keys []RcptKey, dotPossible bool) {
	addr := ""
	if m.ClientAddr.IsValid() {
		addr = m.ClientAddr.String()
	}
	g.id, g.user, g.credential = append(g.id, m.ID), append(g.user, m.UserID), append(g.credential, m.CredentialID)
	g.local, g.domain = append(g.local, m.Sender.Local), append(g.domain, m.Sender.Domain)
	g.size, g.bodyType = append(g.size, m.Size), append(g.bodyType, string(m.BodyType))
	g.utf8, g.eightBit = append(g.utf8, m.UTF8), append(g.eightBit, m.EightBit)
	g.ret, g.envid = append(g.ret, string(m.Ret)), append(g.envid, pg.Storable(m.EnvID))
	g.headerID, g.acceptedAt = append(g.headerID, pg.Storable(m.MessageID)), append(g.acceptedAt, m.AcceptedAt)
	g.addr, g.hello = append(g.addr, addr), append(g.hello, pg.Storable(m.ClientHello))
	g.listener, g.tls = append(g.listener, pg.Storable(m.Listener)), append(g.tls, pg.Storable(m.TLS))
	g.tlsNeed, g.needsTLS = append(g.tlsNeed, string(m.TLSNeed)), g.needsTLS || m.TLSNeed != ""
	g.recipients, g.rule = append(g.recipients, int32(len(rcpts))), append(g.rule, pg.Storable(m.Rule))
	g.bodyHash, g.hashed = append(g.bodyHash, m.BodyHash), g.hashed || m.BodyHash != nil
	g.tags, g.metadata = append(g.tags, arrayText(m.Tags)), append(g.metadata, m.Metadata)
	g.tagged = g.tagged || m.Tags != nil || m.Metadata != ""
	for _, k := range keys {
		g.keys = append(g.keys, groupKey{k, int32(len(g.id)), int32(m.Key.Window / time.Second), m.Key.Content})
	}
	g.charged = append(g.charged, quota.Charge{Limits: m.Charges, Recipients: len(rcpts), Size: m.Size})
	g.dot = append(g.dot, dotPossible)
	for i := range rcpts {
		r := &rcpts[i]
		key := r.Address.DomainKey()
		g.keyed, g.hasORcpt = g.keyed || key != r.Address.Domain, g.hasORcpt || r.ORcptType != "" || r.ORcpt != ""
		g.rMessage, g.rN = append(g.rMessage, int32(len(g.id))), append(g.rN, int32(r.N))
		tell := tells(m.Sender, r.Notify)
		if r.Suppressed {
			tell |= isSuppressed
		}
		g.tell, g.notify = append(g.tell, tell), append(g.notify, int16(r.Notify))
		g.key, g.rLocal, g.rDomain = append(g.key, key), append(g.rLocal, r.Address.Local), append(g.rDomain, r.Address.Domain)
		g.rType, g.orcpt = append(g.rType, pg.Storable(r.ORcptType)), append(g.orcpt, pg.Storable(r.ORcpt))
	}
}

// groupKey is a key of duplicates: of which message of the group, for how many seconds, and what
// content a client's own key stands for.
type groupKey struct {
	RcptKey
	message, span int32
	content       [16]byte
}

// sortKeys makes the columns of the keys, in the order in which all transactions put them in: two
// that wait for each other's would not end.
func (g *Group) sortKeys() {
	slices.SortFunc(g.keys, func(a, b groupKey) int { return bytes.Compare(a.Key[:], b.Key[:]) })
	g.dupKey, g.dupContent, g.dupMessage, g.dupN, g.dupSpan = g.dupKey[:0], g.dupContent[:0], g.dupMessage[:0], g.dupN[:0], g.dupSpan[:0]
	for _, k := range g.keys {
		g.dupKey, g.dupContent = append(g.dupKey, k.Key), append(g.dupContent, k.content)
		g.dupMessage, g.dupN, g.dupSpan = append(g.dupMessage, k.message), append(g.dupN, int32(k.N)), append(g.dupSpan, k.span)
	}
}

// arrayText writes a text[] as PostgreSQL reads it, and "" for none.
func arrayText(list []string) string {
	if len(list) == 0 {
		return ""
	}
	quote := strings.NewReplacer(`\`, `\\`, `"`, `\"`)
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = `"` + quote.Replace(s) + `"`
	}
	return "{" + strings.Join(quoted, ",") + "}"
}

// AddBody adds the octets of a small body, of message id.
func (g *Group) AddBody(id uuid.UUID, body content.Body) error {
	size := int(body.Size())
	if g.buf == nil || cap(g.buf)-len(g.buf) < size {
		// The earlier chunks still point into the former buffer.
		g.buf = make([]byte, 0, max(size, 64<<10))
	}
	at := len(g.buf)
	g.buf = g.buf[:at+size]
	data := g.buf[at:]
	if size > 0 {
		if err := content.Read(body, data, 0); err != nil {
			return &pg.RowError{Err: err}
		}
	}
	for n := int32(0); n == 0 || len(data) > 0; n++ {
		k := min(len(data), content.ChunkSize)
		g.bodyID, g.bodyN, g.chunk = append(g.bodyID, id), append(g.bodyN, n), append(g.chunk, data[:k:k])
		data = data[k:]
	}
	return nil
}

// Refuse ends a group of one message, which is over a limit, without an insert.
func (g *Group) Refuse(over error) { g.results = append(g.results[:0], Result{Err: over}) }

// Results are what became of the messages, in the order in which they were added.
func (g *Group) Results() []Result { return g.results }

// Near lists the limits that are nearly used up by this group.
func (g *Group) Near() []quota.Near { return g.charges.Near() }

// Inserted is how many messages were stored.
func (g *Group) Inserted() int { return g.inserted }

// EpochLost reports that the owner's epoch is dead, so that nothing was stored: no message was refused
// or a duplicate, and a commit in doubt does not ask for the epoch.
func (g *Group) EpochLost() bool {
	return g.inserted == 0 && !g.again && !slices.ContainsFunc(g.results, func(r Result) bool { return r.Err != nil || r.Copies != nil })
}

// Insert runs the statement. again is for a commit in doubt: messages that are stored already are
// left alone.
func (g *Group) Insert(ctx context.Context, conn *pgx.Conn, owner Owner, again bool) error {
	var d decision
	sql, args, results := g.statement(owner, again, &d)
	if err := conn.QueryRow(ctx, sql, args...).Scan(results...); err != nil {
		return fmt.Errorf("insert: %w", err)
	}
	g.decided(&d)
	return nil
}

// InsertAndCommit is Insert and the end of the transaction in one round trip.
func (g *Group) InsertAndCommit(ctx context.Context, conn *pgx.Conn, owner Owner) error {
	var d decision
	sql, args, results := g.statement(owner, false, &d)
	batch := &pgx.Batch{}
	batch.Queue(sql, args...).QueryRow(func(row pgx.Row) error { return row.Scan(results...) })
	batch.Queue("commit")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("insert and commit: %w", err)
	}
	g.decided(&d)
	return nil
}

// decision is what the database decided about the messages of a group, but for their
// charges, which have their own results.
type decision struct {
	inserted int
	held     [][16]byte

	// Of each recipient that is a duplicate: its message, its number and the message that was first.
	copied, first [][16]byte
	copiedN       []int32
}

// statement returns what inserts the messages; its one row goes into d and the charges.
func (g *Group) statement(owner Owner, again bool, d *decision) (sql string, args, results []any) {
	g.charges.Fill(g.charged)
	g.owner, g.again = owner, again
	g.args.Values = g.args.Values[:0]
	g.arguments(&g.args)
	results = append([]any{&d.inserted, nil, &d.held}, g.charges.Results()...)
	results = append(results, &d.copied, &d.copiedN, &d.first, nil)
	switch {
	case again:
		sql = sqlEnqueueAgain
	case g.charges.None() && len(g.keys) == 0:
		sql = sqlEnqueue
	case g.charges.None() && g.Wary == 0:
		sql = sqlEnqueueKeyed
	default:
		g.Wary = max(g.Wary-1, 0)
		sql = sqlEnqueueJudged
	}
	return sql, g.args.Values, results
}

// decided notes the decision about each message.
func (g *Group) decided(d *decision) {
	g.inserted, g.results = d.inserted, g.results[:0]
	for i, id := range g.id {
		r := Result{Held: slices.Contains(d.held, id)}
		for at, copied := range d.copied {
			if copied == id {
				r.copy(int(d.copiedN[at]), d.first[at])
			}
		}
		if over := g.charges.Over(i); over != nil {
			r.Err = over
		}
		g.results = append(g.results, r)
	}
}

// tells says what the sender of m wants to hear about a recipient (RFC 3461
// section 4.1; without NOTIFY a failure and, by custom, a delay). Nothing is ever
// told to the null path.
func tells(sender smtp.Address, notify smtp.Notify) int16 {
	if sender.IsNull() || notify&smtp.NotifyNever != 0 {
		return 0
	}
	if notify == 0 {
		return tellFailure | tellDelay
	}
	var tell int16
	if notify&smtp.NotifyFailure != 0 {
		tell |= tellFailure
	}
	if notify&smtp.NotifyDelay != 0 {
		tell |= tellDelay
	}
	if notify&smtp.NotifySuccess != 0 {
		tell |= tellSuccess
	}
	return tell
}
