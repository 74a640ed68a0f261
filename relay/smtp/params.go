package smtp

import (
	"errors"
	"math"
	"strconv"
	"strings"
)

const (
	maxParams = 20
	maxEnvID  = 100 // RFC 3461 section 4.4
	maxORcpt  = 500 // RFC 3461 section 4.2
)

// param is one ESMTP parameter, its keyword in upper case.
type param struct {
	key, value string
	hasValue   bool
}

func badParam(text string) error {
	return &Error{Reply: Permanent(501, 5, 4, text)}
}

// splitParams takes apart what is behind a path (RFC 5321 section 4.1.2,
// Mail-parameters). utf8 allows values beyond ASCII (RFC 6531 section 3.3).
func splitParams(s string, utf8 bool) ([]param, error) {
	var params []param
	for word := range strings.FieldsFuncSeq(s, func(r rune) bool { return r == ' ' }) {
		key, value, hasValue := strings.Cut(word, "=")
		p := param{strings.ToUpper(key), value, hasValue}
		if !isKeyword(p.key) || hasValue && !isParamValue(value, utf8) {
			return nil, badParam("Malformed parameter")
		}
		if len(params) == maxParams {
			return nil, badParam("Too many parameters")
		}
		for _, other := range params {
			if other.key == p.key {
				return nil, badParam("Parameter " + p.key + " given twice")
			}
		}
		params = append(params, p)
	}
	return params, nil
}

// isKeyword reports an esmtp-keyword in upper case.
func isKeyword(s string) bool {
	for i := range len(s) {
		c := s[i]
		if ('A' > c || c > 'Z') && !isDigit(c) && (c != '-' || i == 0) {
			return false
		}
	}
	return s != "" && len(s) <= 64
}

// isParamValue reports an esmtp-value.
func isParamValue(s string, utf8 bool) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '=' || c == 0x7F || c > 0x7F && !utf8 {
			return false
		}
	}
	return s != ""
}

// unknownParam is the refusal of RFC 5321 section 4.1.1.11.
func unknownParam(verb string) error {
	return &Error{Reply: Permanent(555, 5, 4, verb+" parameter not recognized")}
}

// set takes one parameter of MAIL over.
func (m *MailCommand) set(p param) error {
	switch p.key {
	case "SIZE":
		return m.setSize(p.value)
	case "BODY":
		m.Body = BodyType(strings.ToUpper(p.value))
		if m.Body != Body7Bit && m.Body != Body8BitMIME {
			return badParam("BODY is 7BIT or 8BITMIME")
		}
	case "SMTPUTF8":
		if p.hasValue {
			return badParam("SMTPUTF8 takes no value")
		}
		m.UTF8 = true
	case "REQUIRETLS":
		if p.hasValue {
			return badParam("REQUIRETLS takes no value")
		}
		m.RequireTLS = true
	case "RET":
		m.Ret = Return(strings.ToUpper(p.value))
		if m.Ret != ReturnFull && m.Ret != ReturnHeaders {
			return badParam("RET is FULL or HDRS")
		}
	case "ENVID":
		id, err := decodeXtext(p.value)
		if err != nil || id == "" || len(p.value) > maxEnvID || !printableASCII(id) {
			return badParam("ENVID is not valid")
		}
		m.EnvID = id
	case "AUTH":
		auth, err := decodeXtext(p.value)
		if err != nil || auth == "" || !printableASCII(auth) {
			return badParam("AUTH is not valid")
		}
		m.Auth = auth
	default:
		return unknownParam("MAIL")
	}
	return nil
}

// setSize takes SIZE over (RFC 1870 section 3: up to 20 digits). A number that fits
// the grammar and no file is a message that is too big, not an error of syntax.
func (m *MailCommand) setSize(s string) error {
	if s == "" || len(s) > 20 || strings.Trim(s, "0123456789") != "" {
		return badParam("SIZE is a number of octets")
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if errors.Is(err, strconv.ErrRange) || n > math.MaxInt64 {
		return &Error{Reply: Permanent(552, 3, 4, "Message size exceeds fixed maximum message size")}
	}
	m.Size = int64(n)
	return nil
}

// set takes one parameter of RCPT over.
func (r *RcptCommand) set(p param) error {
	switch p.key {
	case "NOTIFY":
		return r.setNotify(p.value)
	case "ORCPT":
		return r.setORcpt(p.value)
	}
	return unknownParam("RCPT")
}

// setNotify takes NOTIFY over: NEVER alone, or a list of the others (RFC 3461
// section 4.1).
func (r *RcptCommand) setNotify(s string) error {
	for word := range strings.SplitSeq(strings.ToUpper(s), ",") {
		var bit Notify
		for _, n := range notifyNames {
			if n.name == word {
				bit = n.bit
			}
		}
		if bit == 0 || r.Notify&bit != 0 {
			return badParam("NOTIFY is NEVER or a list of SUCCESS, FAILURE and DELAY")
		}
		r.Notify |= bit
	}
	if r.Notify&NotifyNever != 0 && r.Notify != NotifyNever {
		return badParam("NOTIFY=NEVER stands alone")
	}
	return nil
}

var notifyNames = []struct {
	bit  Notify
	name string
}{
	{NotifyNever, "NEVER"},
	{NotifySuccess, "SUCCESS"},
	{NotifyFailure, "FAILURE"},
	{NotifyDelay, "DELAY"},
}

// setORcpt takes ORCPT over.
func (r *RcptCommand) setORcpt(s string) error {
	kind, address, ok := decodeORcpt(s)
	// In ASCII an address of the type utf-8 is longer, and must fit all the same.
	if !ok || len(s) > maxORcpt || len(appendORcpt(nil, kind, address)) > maxORcpt {
		return badParam("ORCPT is not valid")
	}
	r.ORcptType, r.ORcpt = kind, address
	return nil
}

// decodeORcpt takes "type;address" apart (RFC 3461 section 4.2; RFC 6533 section 3
// for the type utf-8).
func decodeORcpt(s string) (kind, address string, ok bool) {
	kind, coded, _ := strings.Cut(s, ";")
	kind = strings.ToLower(kind)
	if !isKeyword(strings.ToUpper(kind)) {
		return "", "", false
	}
	address, err := decodeXtext(coded)
	valid := printableASCII
	if err == nil && kind == "utf-8" {
		address, err = decodeUTF8Addr(address)
		valid = printableUTF8
	}
	return kind, address, err == nil && address != "" && valid(address)
}

// appendParams appends the parameters of MAIL that are set.
func (m MailCommand) appendParams(dst []byte) []byte {
	if m.Size > 0 {
		dst = append(dst, " SIZE="...)
		dst = strconv.AppendInt(dst, m.Size, 10)
	}
	if m.Body != "" {
		dst = append(dst, " BODY="...)
		dst = appendXtext(dst, string(m.Body))
	}
	if m.UTF8 {
		dst = append(dst, " SMTPUTF8"...)
	}
	if m.RequireTLS {
		dst = append(dst, " REQUIRETLS"...)
	}
	if m.Ret != "" {
		dst = append(dst, " RET="...)
		dst = appendXtext(dst, string(m.Ret))
	}
	if m.EnvID != "" {
		dst = append(dst, " ENVID="...)
		dst = appendXtext(dst, m.EnvID)
	}
	if m.Auth != "" {
		dst = append(dst, " AUTH="...)
		dst = appendXtext(dst, m.Auth)
	}
	return dst
}

// appendParams appends the parameters of RCPT that are set.
func (r RcptCommand) appendParams(dst []byte) []byte {
	separator := " NOTIFY="
	for _, n := range notifyNames {
		if r.Notify&n.bit != 0 {
			dst = append(dst, separator...)
			dst = append(dst, n.name...)
			separator = ","
		}
	}
	if r.ORcptType == "" || r.ORcpt == "" {
		return dst
	}
	dst = append(dst, " ORCPT="...)
	return appendORcpt(dst, r.ORcptType, r.ORcpt)
}

// appendORcpt appends "type;address" in ASCII.
func appendORcpt(dst []byte, kind, address string) []byte {
	dst = appendXtext(dst, kind)
	dst = append(dst, ';')
	if strings.EqualFold(kind, "utf-8") {
		return appendUTF8Addr(dst, address)
	}
	return appendXtext(dst, address)
}
