package peers

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"postern/internal/serve"
)

// Answers are what a server says to RCPT, for each address (in lower case) one
// reply after the other, as in "451 4.2.0 Greylisted". When they are used up the
// address is accepted, except that a 5xx is never used up.
type Answers map[string][]string

// A answerServer tells Postfix and Exim how to answer RCPT, and counts.
// Postfix asks by its policy protocol (SMTPD_POLICY_README), Exim by readsocket.
type answerServer struct {
	server *serve.Server

	mu      sync.Mutex
	answers Answers
	asked   map[string]int
}

func startAnswers(answers Answers) (*answerServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for questions: %w", err)
	}
	v := &answerServer{answers: Answers{}, asked: map[string]int{}}
	for address, replies := range answers {
		v.answers[strings.ToLower(address)] = append([]string(nil), replies...)
	}
	v.server = serve.Start(listener, v.talk)
	return v, nil
}

// talk answers requests until the peer goes. Postfix sends name=value lines up to
// an empty line; Exim, by our configuration, one line exim=ADDRESS.
func (v *answerServer) talk(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	recipient := ""
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), "=")
		switch name {
		case "recipient":
			recipient = value
		case "":
			action := v.next(recipient)
			if action == "" {
				action = "DUNNO"
			}
			if _, err := io.WriteString(conn, "action="+action+"\n\n"); err != nil {
				return
			}
		case "exim": // it reads to the end of the connection
			_, _ = io.WriteString(conn, v.next(value)) // an error shows as an empty answer
			return
		}
	}
}

// next is the reply to one more RCPT, or "" to accept.
func (v *answerServer) next(recipient string) string {
	recipient = strings.ToLower(recipient)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.asked[recipient]++
	left := v.answers[recipient]
	if len(left) == 0 {
		return ""
	}
	if !strings.HasPrefix(left[0], "5") {
		v.answers[recipient] = left[1:]
	}
	return left[0]
}

func (v *answerServer) count(recipient string) int {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.asked[strings.ToLower(recipient)]
}
