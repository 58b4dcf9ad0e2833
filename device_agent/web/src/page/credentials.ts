/**
 * The link's fragment, as this device keeps it: in IndexedDB, under a key of WebCrypto that no script can read out.
 *
 * A copy of the browser's files tells the password only together with the key, which the browser keeps to itself.
 */

const DATABASE = "spliteasy";
const STORE = "credentials";
const NAME = "enrolment";
/** Where earlier builds kept it, in the open. */
const FORMER = "spliteasy enrolment";

interface Kept {
  readonly key: CryptoKey;
  readonly iv: Uint8Array<ArrayBuffer>;
  readonly data: ArrayBuffer;
}

/** Keep a fragment in place of the one before. Rejects where the browser keeps nothing. */
export async function keepFragment(fragment: string): Promise<void> {
  const key = await crypto.subtle.generateKey({ name: "AES-GCM", length: 256 }, false, ["encrypt", "decrypt"]);
  const iv = crypto.getRandomValues(new Uint8Array(12));
  const data = await crypto.subtle.encrypt({ name: "AES-GCM", iv }, key, new TextEncoder().encode(fragment));
  await inStore("readwrite", (store) => store.put({ key, iv, data } satisfies Kept, NAME));
  localStorage.removeItem(FORMER);
}

/** The fragment that is kept; null where there is none, or it can't be read any more. */
export async function keptFragment(): Promise<string | null> {
  const former = localStorage.getItem(FORMER);
  if (former !== null) await keepFragment(former);
  const kept = (await inStore("readonly", (store) => store.get(NAME))) as Kept | undefined;
  if (kept === undefined) return null;
  try {
    return new TextDecoder().decode(await crypto.subtle.decrypt({ name: "AES-GCM", iv: kept.iv }, kept.key, kept.data));
  } catch {
    return null;
  }
}

async function inStore(mode: IDBTransactionMode, act: (store: IDBObjectStore) => IDBRequest): Promise<unknown> {
  const opening = indexedDB.open(DATABASE, 1);
  opening.onupgradeneeded = () => opening.result.createObjectStore(STORE);
  const database = (await done(opening)) as IDBDatabase;
  try {
    return await done(act(database.transaction(STORE, mode).objectStore(STORE)));
  } finally {
    database.close();
  }
}

function done(request: IDBRequest): Promise<unknown> {
  return new Promise((kept, failed) => {
    request.onsuccess = () => kept(request.result);
    request.onerror = () => failed(request.error ?? new Error("the browser's store failed"));
  });
}
