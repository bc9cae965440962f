// Serves this repository's files to this machine's browser.
import { createReadStream, realpathSync, statSync } from 'node:fs';
import { createServer } from 'node:http';
import { extname, join, sep } from 'node:path';
import { fileURLToPath } from 'node:url';

const types = {
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.mjs': 'text/javascript',
  '.json': 'application/json',
};

/** The file behind a path of a URL; nothing outside of `root`, no folders. */
function fileOf(root, url) {
  try {
    const { pathname } = new URL(url, 'http://localhost');
    const path = realpathSync(join(root, decodeURIComponent(pathname)));
    return path.startsWith(root + sep) && statSync(path).isFile()
      ? path
      : undefined;
  } catch {
    return undefined;
  }
}

/** A server on a free port, or on `port`. Browsers offer WebGPU to localhost. */
export function serve(folder, port = 0) {
  const root = realpathSync(folder);
  const server = createServer((request, response) => {
    const path = fileOf(root, request.url ?? '/');
    if (!path) return response.writeHead(404).end();
    const type = types[extname(path)] ?? 'application/octet-stream';
    response.writeHead(200, { 'content-type': type });
    createReadStream(path).pipe(response);
  });
  return new Promise((resolve) => {
    server.listen(port, '127.0.0.1', () => resolve(server));
  });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const root = fileURLToPath(new URL('../..', import.meta.url));
  const server = await serve(root, 8080);
  console.log(
    `http://localhost:${server.address().port}/examples/browser/index.html`,
  );
}
