package pgserver

import (
	"os"
	"path/filepath"
	"strings"
)

// socket is the folder that has the server's unix socket.
type socket struct {
	dir  string
	away bool // outside the server's own folder
}

// socketFile is the name that PostgreSQL gives its socket on the default port.
const socketFile = ".s.PGSQL.5432"

// maxSocketPath is how long the path of a unix socket can be on Linux, without
// its final NUL. (macOS allows 103; a path between the two fails with a clear
// message of the server.)
const maxSocketPath = 107

// newSocket makes the folder, inside the server's own unless that makes the
// path too long for a socket. PostgreSQL splits the setting at commas.
func newSocket(folder *os.Root, owner account) (socket, error) {
	s := socket{dir: filepath.Join(folder.Name(), "socket")}
	if len(filepath.Join(s.dir, socketFile)) <= maxSocketPath && !strings.ContainsAny(s.dir, `,"`) {
		return s, owner.folder(folder, "socket")
	}
	short, err := os.MkdirTemp("/tmp", "postern-pg-") // below a sticky one nobody else can move it
	if err != nil {
		return socket{}, err
	}
	s = socket{dir: short, away: true}
	if owner.other {
		err = os.Lchown(short, owner.uid, owner.gid)
	}
	if err != nil {
		s.remove()
	}
	return s, err
}

func (s socket) remove() {
	if s.away {
		_ = os.RemoveAll(s.dir)
	}
}
