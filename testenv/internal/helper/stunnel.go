//go:build linux

package helper

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/xenserver/dtagent/testenv/config"
	"github.com/xenserver/dtagent/testenv/internal/node"
)

// poolName is the name by which hosts of a pool ask each other for the certificate
// that they have in the pool (stunnel.ml).
const poolName = "pool"

// Stunnel takes TLS connections and passes them on to xapi in plain, each led by a
// PROXY line.
func Stunnel(p *node.Proc) error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	host := "127.0.0.1"
	if p.Setup.Options.Pool != nil { // it has a network of its own
		host = ""
	}
	l, err := tls.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(int(p.Setup.Options.TLSPort))), &tls.Config{
		Certificates: []tls.Certificate{cert},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName != poolName || p.Setup.Options.Pool == nil {
				return nil, nil // that above
			}
			pool, err := tls.LoadX509KeyPair(config.PoolCertificate, config.PoolCertificate)
			return &pool, err
		},
	})
	if err != nil {
		return err
	}
	if err := p.Ready(netip.MustParseAddrPort(l.Addr().String()).Port()); err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go forward(c, strconv.Itoa(int(p.Setup.Options.Port)))
	}
}

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	t := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, t, t, &key.PublicKey, key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// forward connects to localhost, IPv6 first as stunnel does.
func forward(c net.Conn, port string) {
	defer c.Close()
	if t, ok := c.(*tls.Conn); !ok || t.Handshake() != nil {
		return
	}
	x, err := net.Dial("tcp", net.JoinHostPort("::1", port))
	if err != nil {
		if x, err = net.Dial("tcp", net.JoinHostPort("127.0.0.1", port)); err != nil {
			return
		}
	}
	defer x.Close()
	from, _ := netip.ParseAddrPort(c.RemoteAddr().String())
	to, _ := netip.ParseAddrPort(c.LocalAddr().String())
	if _, err := fmt.Fprintf(x, "PROXY TCP6 %s %s %d %d\r\n", mapped(from), mapped(to), from.Port(), to.Port()); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		io.Copy(x, c) // an end is an end
		_ = x.(*net.TCPConn).CloseWrite()
		close(done)
	}()
	io.Copy(c, x) // an end is an end
	_ = c.(*tls.Conn).CloseWrite()
	<-done
}

func mapped(a netip.AddrPort) string {
	if a.Addr().Is4() {
		return "::ffff:" + a.Addr().String()
	}
	return a.Addr().String()
}
