package message

import (
	"bytes"
	"strings"
	"unicode/utf8"

	"postern/relay/smtp"
)

const (
	maxMailboxes = 100 // of each Facts field
	maxNesting   = 16  // of comments
)

// fault is what is wrong with an address field, as it goes on after "The From field".
type fault string

func (f fault) Error() string { return string(f) }

const (
	faultControl        = fault("has a control character; remove it")
	faultComment        = fault("has a comment that is not closed or too deep; remove it")
	faultTempting       = fault("has a comment with an address or a quote in it; remove it")
	faultQuote          = fault("has a quote that is not closed; close it")
	faultPair           = fault("has both \\ and @ in quoted names; remove one of them")
	faultOctets         = fault("has text in an unknown charset; write it in UTF-8 or as an encoded word")
	faultEmpty          = fault("has an empty place in its list; remove the comma")
	faultNoDomain       = fault("has text without an address; write Name <user@example.com>, and quotes around a name with a comma")
	faultText           = fault("has text around an address that can be read in two ways; write \"Name\" <user@example.com>")
	faultBrackets       = fault("has something else than one plain address in < >; write Name <user@example.com>")
	faultRoute          = fault("has a source route; write the address alone")
	faultGroup          = fault("has a group that is not closed or within another; write a plain list of addresses")
	faultEncoded        = fault("has an encoded word in an address; only names can be encoded")
	faultEncodedList    = fault("has an encoded name that is a list of addresses; remove the @ or the commas and brackets from it")
	faultEncodedControl = fault("has an encoded word with a control character; remove it")
	faultCharset        = fault("has an encoded word in an unusual charset; write it in UTF-8")
	faultWord           = fault("has something that is not a complete encoded word; rewrite it")
	faultFold           = fault("is folded within quotes or a comment; fold it between words, or write it on one line")
	faultUTF8           = fault("has an address that is not ASCII; send it with SMTPUTF8 or write the domain in A-labels")
	faultAt             = fault("has an address with a second @; use another one")
	faultTouching       = fault("has a comment in a comment beside an address; put a space between them")
	faultLine           = fault("has a line of more than 998 octets; fold it")
	faultMany           = fault("has too many addresses; write fewer")
)

// addressList reads the body of an address field: the address-list of RFC 5322
// section 3.4, folding included. It is stricter than the grammar wherever two
// readers of mail may see different addresses in the same octets:
//
//   - of the obsolete forms only dots in unquoted display names are taken;
//   - an addr-spec is written without spaces and comments in it, and has one @;
//   - comments have no quotes in them, and no address but the one that they stand beside;
//   - quoted names that have an @ have no quoted pairs;
//   - where quotes or comments are folded, no reader who takes the fold for their end
//     finds an address in them, and none of the field changes for that reader;
//   - what begins or ends as an encoded word is one, and stands alone;
//   - no encoded word holds a control or a list of addresses (encodedFault).
//
// Names may be what the grammar's are not, as long as everybody finds the same
// address: [App] Name <a@b>, and a@b <a@b> with one address twice.
//
// Octets beyond ASCII may stand in names and comments in any charset, as long as no
// special character could be the second octet of one of theirs. It reads each octet
// once or, of addresses, twice.
type addressList struct {
	in     []byte
	pos    int
	utf8   bool // in addresses too
	out    []smtp.Address
	claim  smtp.Address // the one in comments of the entry that is read
	sawAt  bool         // in a quoted string
	pair   bool         // in a quoted string
	square bool         // brackets in a name: Python takes what is before them for an address
	folds  folds

	specs   [][2]int // where the addresses of out are, kept if it is not nil
	commas  []int    // between entries, kept with specs
	grouped bool     // there is a group
}

// folds is what matters once a quoted string or a comment is folded. Python's
// email.utils takes the carriage return for its end and reads on, a quoted string's
// closing quote then opens one: of what follows it sees what was hidden, and the other
// way round. An address in brackets without quotes it sees whole or not at all.
type folds struct {
	any    bool
	quoted bool // in a quoted string
	marks  bool // what makes an address is in a quoted string or a folded comment
	odd    bool // an address is without brackets, quoted, or written twice
	colon  bool // in a quoted string: it makes a group, which may be of other mailboxes
}

// mislead reports that another reading of a list of n mailboxes may have another address.
func (f folds) mislead(n int) bool {
	return f.any && (f.marks || f.odd) || f.quoted && f.colon && n > 1
}

// appendMailboxes appends the mailboxes in value, those in groups included. The
// error is a fault.
func appendMailboxes(dst []smtp.Address, value []byte, utf8 bool) ([]smtp.Address, error) {
	p := addressList{in: bytes.TrimSuffix(value, crlf), utf8: utf8, out: dst}
	if err := p.read(); err != nil {
		return dst, err
	}
	return p.out, nil
}

// read reads all of it. That it is empty is for the caller to judge.
func (p *addressList) read() error {
	before := len(p.out)
	if err := p.space(); err != nil || p.pos == len(p.in) {
		return err
	}
	for {
		if err := p.entry(false); err != nil {
			return err
		}
		if p.pos == len(p.in) {
			break
		}
		p.comma()
		p.pos++
	}
	switch {
	case p.sawAt && p.pair:
		return faultPair
	case p.sawAt && p.square:
		return faultText
	case p.folds.mislead(len(p.out) - before):
		return faultFold
	}
	return encodedFault(p.in, p.sawAt)
}

// comma keeps where one is.
func (p *addressList) comma() {
	if p.specs != nil && p.in[p.pos] == ',' {
		p.commas = append(p.commas, p.pos)
	}
}

// entry reads a mailbox or a group, up to the comma or the end behind it; within a
// group, up to the comma or the semicolon.
func (p *addressList) entry(inGroup bool) error {
	words, err := p.phrase()
	if err != nil {
		return err
	}
	switch c := p.peek(); {
	case c == '<':
		err = p.angle()
	case c == '@' && words.runs == 0:
		return faultRoute
	case c == '@' && words.runs == 1 && words.tight:
		err = p.bare(words.start)
	case c == ':' && words.runs > 0 && !inGroup:
		p.pos++
		err = p.group()
	case c == ':':
		return faultGroup
	case words.runs > 0 && (c == ',' || c == ';' || c == 0):
		return faultNoDomain
	case c == ',' || c == ';' || c == 0:
		return faultEmpty
	default:
		return p.unexpected()
	}
	if err != nil {
		return err
	}
	if err := p.space(); err != nil {
		return err
	}
	if err := p.settle(); err != nil {
		return err
	}
	switch c := p.peek(); {
	case c == 0 && p.pos < len(p.in):
		return faultControl
	case c == ',', c == 0 && !inGroup, c == ';' && inGroup:
		return nil
	case c == 0:
		return faultGroup
	}
	return p.unexpected()
}

// bare reads an address without brackets. When one in brackets follows, it was the
// name, and all of it: Python takes words behind an address for a part of its domain.
func (p *addressList) bare(start int) error {
	p.folds.odd = true
	if err := p.addrSpec(start); err != nil {
		return err
	}
	if err := p.space(); err != nil || p.peek() != '<' {
		return err
	}
	last := len(p.out) - 1
	named := p.out[last]
	p.out = p.out[:last]
	if p.specs != nil {
		p.specs = p.specs[:last]
	}
	if err := p.angle(); err != nil {
		return err
	}
	if !same(named, p.out[last]) {
		return faultText
	}
	return nil
}

// settle compares the address in an entry's comments with its own.
func (p *addressList) settle() error {
	if !p.claim.IsNull() && (len(p.out) == 0 || !same(p.claim, p.out[len(p.out)-1])) {
		return faultTempting
	}
	p.claim = smtp.Address{}
	return nil
}

// same compares addresses as the policy does.
func same(a, b smtp.Address) bool {
	return is([]byte(a.Local), b.Local) && a.DomainKey() == b.DomainKey()
}

// peek is the next octet, 0 at the end.
func (p *addressList) peek() byte {
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

// unexpected says why the next octet cannot stand where it does.
func (p *addressList) unexpected() error {
	if c := p.in[p.pos]; c < ' ' || c == 0x7F {
		return faultControl
	}
	return faultText
}

// group reads what is behind the colon of a group (RFC 6854 allows them in From and
// Sender), up to and with the semicolon.
func (p *addressList) group() error {
	p.grouped = true
	if err := p.space(); err != nil {
		return err
	}
	if p.peek() == ';' {
		p.pos++
		return nil
	}
	for {
		if err := p.entry(true); err != nil {
			return err
		}
		p.comma()
		p.pos++
		if p.in[p.pos-1] == ';' {
			return nil
		}
	}
}

// phrase is what stands before an address, or its local part. A run is a stretch
// of words and dots without space or comments.
type phrase struct {
	runs  int
	start int  // of the last run
	tight bool // nothing is between the last run and what follows
}

func (p *addressList) phrase() (w phrase, err error) {
	for p.pos < len(p.in) {
		c := p.in[p.pos]
		if isSpace(c) || c == '(' {
			if err := p.endOfRun(w); err != nil {
				return w, err
			}
			if err := p.space(); err != nil {
				return w, err
			}
			w.tight = false
			continue
		}
		if c != '"' && c != '.' && c != '[' && c < utf8.RuneSelf && !isAtext(c) {
			return w, p.endOfRun(w)
		}
		if !w.tight {
			w.runs++
			w.start, w.tight = p.pos, true
		}
		switch {
		case c == '"':
			err = p.quoted()
		case c == '[':
			err = p.bracketed()
		case c >= utf8.RuneSelf:
			err = p.high()
		default:
			p.pos++
		}
		if err != nil {
			return w, err
		}
	}
	return w, p.endOfRun(w)
}

// bracketed passes over words of a name in square brackets, which some readers take
// for a domain literal: they hold nothing that would be a part of an address elsewhere.
func (p *addressList) bracketed() error {
	p.square = true
	p.pos++
	for p.pos < len(p.in) {
		var err error
		switch c := p.in[p.pos]; {
		case c == ']':
			p.pos++
			return nil
		case isSpace(c):
			err = p.blank()
		case c >= utf8.RuneSelf:
			err = p.high()
		case c == '.' || c == ':' || isAtext(c):
			p.pos++
		default:
			err = p.unexpected()
		}
		if err != nil {
			return err
		}
	}
	return faultText
}

// endOfRun refuses a run that some readers take for an encoded word (RFC 2047 section 2)
// and others do not.
func (p *addressList) endOfRun(w phrase) error {
	if !w.tight {
		return nil
	}
	run := p.in[w.start:p.pos]
	if !bytes.Contains(run, []byte("=?")) && !bytes.Contains(run, []byte("?=")) || run[0] == '"' {
		return nil
	}
	parts := bytes.Split(run, []byte("?"))
	if len(parts) != 5 || string(parts[0]) != "=" || len(parts[1]) == 0 || string(parts[4]) != "=" ||
		len(parts[2]) != 1 || !strings.Contains("bBqQ", string(parts[2])) || bytes.IndexByte(run, '"') >= 0 || !smtp.IsASCII(run) {
		return faultWord
	}
	return nil
}

// space passes over folding white space and comments.
func (p *addressList) space() error {
	for p.pos < len(p.in) {
		switch c := p.in[p.pos]; {
		case c == '(':
			if err := p.comment(); err != nil {
				return err
			}
		case isSpace(c):
			if err := p.blank(); err != nil {
				return err
			}
		default:
			return nil
		}
	}
	return nil
}

// blank passes over one octet of white space, or the CRLF of a fold.
func (p *addressList) blank() error {
	if c := p.in[p.pos]; c == ' ' || c == '\t' {
		p.pos++
		return nil
	}
	if rest := p.in[p.pos:]; len(rest) < 3 || rest[0] != '\r' || rest[1] != '\n' || rest[2] != ' ' && rest[2] != '\t' {
		return faultControl
	}
	p.pos += 2
	return nil
}

// comment passes over a comment with those in it.
func (p *addressList) comment() error {
	start, at, fold, marks, nested := p.pos, false, false, false, false
	for depth := 0; p.pos < len(p.in); {
		c, err := p.text()
		if err != nil {
			return err
		}
		switch c {
		case '(':
			depth++
			nested = depth > 1
		case ')':
			depth--
		case '@':
			at = true
		case '<', '>', '"':
			return faultTempting
		case '\\':
			if c := p.in[p.pos-1]; strings.IndexByte(`@<>"`, c) >= 0 {
				return faultTempting
			}
		case ',', ':', ';':
			marks = true
		case '\r':
			p.folds.any, fold = true, true
		}
		if depth == 0 {
			p.folds.marks = p.folds.marks || fold && marks
			if nested && (!p.parts(start-1) || !p.parts(p.pos)) {
				return faultTouching
			}
			if at {
				return p.onlyAddress(p.in[start+1 : p.pos-1])
			}
			return nil
		}
		if depth > maxNesting {
			return faultComment
		}
	}
	return faultComment
}

// parts reports that the octet at i parts a comment from what is beyond, also for a reader
// who takes the first closing parenthesis for the end of the comment: the rest would join
// an address.
func (p *addressList) parts(i int) bool {
	return i < 0 || i >= len(p.in) || isSpace(p.in[i]) || strings.IndexByte("<>,:;", p.in[i]) >= 0
}

// onlyAddress notes the address that is all of a comment.
func (p *addressList) onlyAddress(text []byte) error {
	a, err := smtp.ParseAddress(string(bytes.Trim(text, " ")))
	if err != nil || !p.utf8 && !smtp.IsASCII(text) {
		return faultTempting
	}
	if !p.claim.IsNull() && !same(a, p.claim) {
		return faultTempting
	}
	p.claim, p.folds.marks = a, true
	return nil
}

// quoted passes over a quoted string.
func (p *addressList) quoted() error {
	p.pos++
	for p.pos < len(p.in) {
		c, err := p.text()
		if err != nil {
			return err
		}
		switch c {
		case '"':
			return nil
		case '\r':
			p.folds.any, p.folds.quoted = true, true
			continue
		case '\\':
			p.pair = true
			c = p.in[p.pos-1]
		}
		switch c {
		case '@':
			p.sawAt, p.folds.marks = true, true
		case '<', '>':
			p.folds.marks = true
		case ':':
			p.folds.colon = true
		}
	}
	return faultQuote
}

// text passes over one element of a comment or a quoted string and returns its
// first octet: a backslash for a quoted pair, whose other octet is then the last
// that was read.
func (p *addressList) text() (byte, error) {
	c := p.in[p.pos]
	switch {
	case isSpace(c):
		return c, p.blank()
	case c >= utf8.RuneSelf:
		return c, p.high()
	case c < ' ' || c == 0x7F:
		return c, faultControl
	}
	p.pos++
	if c != '\\' {
		return c, nil
	}
	switch next := p.peek(); {
	case next >= utf8.RuneSelf:
		return c, faultOctets
	case next < ' ' && next != '\t' || next == 0x7F:
		return c, faultControl
	}
	p.pos++
	return c, nil
}

// high passes over a character beyond ASCII, or one octet of an unknown charset. The
// second octets of Shift JIS, Big5 and GBK can be special characters of ours.
func (p *addressList) high() error {
	if r, n := utf8.DecodeRune(p.in[p.pos:]); r != utf8.RuneError || n > 1 {
		p.pos += n
		return nil
	}
	p.pos++
	switch p.peek() {
	case '@', '[', '\\', ']':
		return faultOctets
	}
	return nil
}

// angle reads an address in brackets.
func (p *addressList) angle() error {
	p.pos++
	start := p.pos
	switch c := p.peek(); c {
	case '@':
		return faultRoute
	case '"':
		p.folds.odd = true
		if err := p.quoted(); err != nil {
			return err
		}
	default:
		p.dotAtom()
	}
	if p.peek() != '@' {
		return faultBrackets
	}
	if err := p.addrSpec(start); err != nil {
		return err
	}
	if p.peek() != '>' {
		return faultBrackets
	}
	p.pos++
	return nil
}

// addrSpec reads the @ and the domain of the address that begins at start, and
// keeps the address.
func (p *addressList) addrSpec(start int) error {
	p.pos++
	if p.peek() == '[' {
		for p.pos < len(p.in) && p.in[p.pos] > ' ' && p.in[p.pos] < 0x7F && p.in[p.pos] != ']' {
			p.pos++
		}
		if p.peek() == ']' {
			p.pos++
		}
	} else {
		p.dotAtom()
	}
	spec := p.in[start:p.pos]
	switch {
	case bytes.Contains(spec, []byte("=?")), bytes.Contains(spec, []byte("?=")):
		return faultEncoded
	case !p.utf8 && !smtp.IsASCII(spec):
		return faultUTF8
	case len(p.out) == maxMailboxes:
		return faultMany
	}
	a, err := smtp.ParseAddress(string(spec))
	if err != nil {
		return fault("has a bad address: " + err.Error())
	}
	if strings.Contains(a.Local, "@") {
		return faultAt
	}
	p.out = append(p.out, a)
	if p.specs != nil {
		p.specs = append(p.specs, [2]int{start, p.pos})
	}
	return nil
}

// dotAtom passes over atext, dots and what is beyond ASCII, for ParseAddress to judge.
func (p *addressList) dotAtom() {
	for p.pos < len(p.in) {
		if c := p.in[p.pos]; c != '.' && c < utf8.RuneSelf && !isAtext(c) {
			return
		}
		p.pos++
	}
}

// isSpace reports white space, or an octet that begins a fold.
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

// isAtext reports atext (RFC 5322 section 3.2.3).
func isAtext(c byte) bool {
	return c > ' ' && c < 0x7F && strings.IndexByte(`()<>[]:;@\,."`, c) < 0
}
