/**
 * The service worker: it serves exactly the build that the owner has approved, from this device.
 *
 * It is built with the digest of every file. A server that hands out other files changes nothing: a new build waits
 * until the owner takes it, and one whose files do not have their digests is never installed.
 */

/** Path and integrity of each file of this build: `build.mjs` writes them. */
declare const FILES: Readonly<Record<string, string>>;
/** Names the build. */
declare const BUILD: string;

const scope = globalThis as unknown as ServiceWorkerGlobalScope;
const CACHE = `build ${BUILD}`;

scope.addEventListener("install", (event) => event.waitUntil(fetched()));
scope.addEventListener("activate", (event) => event.waitUntil(begun()));
scope.addEventListener("message", ({ data }) => {
  if (data === "approve") void scope.skipWaiting();
});
scope.addEventListener("fetch", (event) => {
  const name = nameOf(event.request.url);
  if (event.request.method === "GET" && name !== null) event.respondWith(kept(name));
});

async function fetched(): Promise<void> {
  const cache = await caches.open(CACHE);
  for (const [name, integrity] of Object.entries(FILES)) {
    const answer = await fetch(new URL(name, scope.registration.scope), { cache: "reload", integrity });
    if (!answer.ok) throw new Error(`${name} of the page is missing`);
    await cache.put(name, answer);
  }
}

async function begun(): Promise<void> {
  for (const name of await caches.keys()) if (name !== CACHE) await caches.delete(name);
  await scope.clients.claim();
}

/** The file as it was approved; from the server, with its digest, only where the browser has dropped it. */
async function kept(name: string): Promise<Response> {
  const found = await (await caches.open(CACHE)).match(name);
  return found ?? fetch(new URL(name, scope.registration.scope), { integrity: FILES[name] });
}

/** The name of the build's file that has this URL; null where it is none of them. */
function nameOf(url: string): string | null {
  const { origin, pathname } = new URL(url);
  const folder = new URL(scope.registration.scope);
  if (origin !== folder.origin || !pathname.startsWith(folder.pathname)) return null;
  const name = pathname.slice(folder.pathname.length) || "index.html";
  return Object.hasOwn(FILES, name) ? name : null;
}
